"""Options and the texts that name one: what a question offers, and which of that an answer says.

Options of a question, each with its label A, B, … Z or a, b, … z or 1, 2, … 99 (or from 0, or 01, 02, …):

    A. red    A) red    A: red    (A) red    [A] red    **A** red    Option A: red    A - red

on lines of their own or in one line, also after `Options:` or `Choices:`; at least two, none without a
text. Lines come before runs inside a line (so that "S. Holm" is no option), of several runs the last
counts. An option ends where the next begins, with its line, or before a sentence that asks for the
answer ("Answer with the letter.").

An answer names an option

    by its label alone           B   b   (B)   B.   B!   B。   [B]   **B**   \\boxed{B}   选B; alone on a line
    by its label at the start    B. green   (b) green   B: green   B, green   B because …   B is right
    by its label at the end      so B   therefore, B.   not A, but B: what stands before does not count
    by its label elsewhere       (B)   option B   choice B   it is B.   I choose B   A or B: both are named
    by its text                  green, as whole words; "dark red" names that, and not "red"

If it says "the answer is …", also "clearly", "Answer: …" or "<answer>…</answer>", what stands behind that
counts alone, to the end of the sentence. What follows "because" or "since" is not read where an option was
named before. A text that two options share names both, unless a label says which. An article is no label:
"A cat", "the answer is a dog". "B is wrong" does not name B by itself; other denials are not understood: "not
a cat" names the cat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from dgg_ray.core.texts import plain, visible

BOLD = re.compile(r"(\*\*|__|`)\s*[(\[]?([0-9]{1,2}|\w)[)\]]?\s*[.):]?\s*\1\s*[.):]?(?!\w)")
BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([0-9]{1,2}|\w)\)?\s*\}+")
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
MARKUP = re.compile(r"\*\*|__|`")
OFFER = re.compile(r"(?:\b(?:options|choices)\b|选项|选择)[^\n:]{0,20}:", re.IGNORECASE)
ASKS = re.compile(
    r"(?<=[.?!;)])\s+(?i:please\s+)?(?i:answer|select|choose|respond|reply|give|pick|return|write)\b"
    r"|\s+Answer(?:\s+with\b|\s*:\s*$)"
)
LABEL = r"(?:([A-Z])|([a-z])|([0-9]{1,2}))"
FORMS = (  # of a label before an option's text; each with the three groups of LABEL
    rf"\({LABEL}\)",
    rf"\[{LABEL}\]",
    rf"{LABEL}\)",
    rf"{LABEL}、",
    rf"{LABEL}\.",
    rf"{LABEL}:",
    rf"{LABEL}\s[-–—](?=\s)",
)
WORD = r"(?:(?i:option|choice)\s+)?"
AT_LINES = [re.compile(rf"^[ \t>*•-]*{WORD}{form}(?=[ \t]*\S)", re.MULTILINE) for form in FORMS]
SPACED = [form + r"(?=\s|[^\x00-\x7f])" if form.endswith((".", ":")) else form for form in FORMS[:6]]
INSIDE = [re.compile(rf"(?<![A-Za-z0-9_.(\[]){WORD}{form}") for form in SPACED]
GLUED = [re.compile(rf"{WORD}{form}") for form in FORMS[:2]]  # `Options:(A) red(B) green`
BEGINNINGS = ("a", "0", "1")
JOINT = re.compile(r"[\s,;|/]*(?:\b(?:and|or))?[\s,;|/]*$", re.IGNORECASE)


@dataclass(frozen=True)
class Offer:
    """labels: as an answer names them, in plain form; texts: in plain form; both in the options' order."""

    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def at(self, label: str) -> frozenset[int]:
        """The option with a label, as a set; empty where there is none."""
        label = usual(label)
        return frozenset([self.labels.index(label)]) if label in self.labels else frozenset()


def clean(text: str) -> str:
    """Without markup; a label in bold or in a box is one in brackets."""
    text = visible(text)
    if "*" in text or "_" in text or "`" in text or "\\" in text:
        text = MARKUP.sub("", BOLD.sub(r"(\2) ", BOXED.sub(r"(\1)", text)))
    return text


# -- what is offered -------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def offered(question: str, choices: tuple[str, ...] = ()) -> Offer:
    """The choices of the record, which may bring their labels, or else those that the question shows."""
    if choices:
        lines = [next(marks([clean(choice)], AT_LINES), None) for choice in choices]
        labels = [found[0] for found in lines if found]
        if len(labels) == len(choices) and consecutive(labels):
            return Offer(tuple(labels), tuple(plain(found[1]) for found in lines if found))
        shown = of_question(question)
        texts = tuple(plain(choice) for choice in choices)
        labels = list(shown.labels) if shown.texts == texts else letters(len(texts))
        return Offer(tuple(labels), texts)
    return of_question(question)


def letters(count: int) -> list[str]:
    return [chr(ord("a") + i) if i < 26 else f"#{i}" for i in range(count)]


def marks(lines: Iterable[str], forms: Iterable[re.Pattern[str]]) -> Iterator[tuple[str, str]]:
    """(Label, text behind it) of each line that begins with a label."""
    for line in lines:
        for form in forms:
            if found := form.match(line):
                yield label_of(found), line[found.end() :]
                break


def consecutive(labels: Sequence[str]) -> bool:
    return labels[0] in BEGINNINGS and all(other == after(one) for one, other in pairwise(labels))


def after(label: str) -> str:
    """The next label: `b` after `a`, 10 after 9."""
    return str(int(label) + 1) if label.isdecimal() else chr(ord(label) + 1)


def usual(label: str) -> str:
    """`b` of `B`, 7 of 07."""
    return str(int(label)) if label.isdecimal() else label.casefold()


def of_question(question: str) -> Offer:
    text = clean(question)
    *before, part = OFFER.split(text)
    places = [(part, AT_LINES), (part, INSIDE), (part, GLUED)] if before else []
    for place, forms in [*places, (text, AT_LINES), (text, INSIDE)]:
        for form in forms:
            if found := run(place, list(form.finditer(place)), forms is AT_LINES):
                return found
    return Offer()


def run(text: str, found: list[re.Match[str]], lines: bool) -> Offer | None:
    """The last run of consecutive labels whose options all have a text; None where there is none."""
    best: tuple[tuple[int, ...], Offer] | None = None
    for start, first in enumerate(found):
        if label_of(first) not in BEGINNINGS:
            continue
        chain = [first]
        for match in found[start + 1 :]:
            if same_kind(match, first) and label_of(match) == after(label_of(chain[-1])):
                chain.append(match)
        ends = [*(match.start() for match in chain[1:]), len(text)]
        texts = [option(text[m.end() : end], end == len(text)) for m, end in zip(chain, ends, strict=True)]
        if len(chain) < 2 or not all(texts) or (lines and cut_short(chain, texts)):
            continue
        rank = (chain[-1].start(), len(chain), first.start())
        if best is None or rank > best[0]:
            best = rank, Offer(tuple(map(label_of, chain)), tuple(map(plain, texts)))
    return best[1] if best else None


def same_kind(one: re.Match[str], other: re.Match[str]) -> bool:
    return [g is None for g in one.groups()] == [g is None for g in other.groups()]


def cut_short(chain: list[re.Match[str]], texts: list[str]) -> bool:
    """Whether the last line goes on with the next label: `B) green C) blue`, two options in a line."""
    following = re.escape(after(label_of(chain[-1])))
    return re.search(rf"(?i)\(?\b{following}\)\s", texts[-1]) is not None


def option(text: str, last: bool) -> str:
    """An option's own words: one line, without what joins it to the next, or asks for the answer."""
    text = text.strip().split("\n")[0]
    if last and (asks := ASKS.search(text)):
        text = text[: asks.start()]
    text = JOINT.sub("", text)
    text = text.rstrip("?") if last else text
    return text.strip() if re.search(r"\w", text) or re.search(r"[^\x00-\x7f]|[<>=+*/%-]", text) else ""


def label_of(match: re.Match[str]) -> str:
    return usual(next(group for group in match.groups() if group))


# -- what is named ---------------------------------------------------------------------------------

L = r"([A-Za-z]|[0-9]{1,2})"
ALONE = re.compile(rf"[\s\"'(\[{{]*(?:选|選)?[\s\"'(\[{{]*{L}[\s\"')\]}}.。:,;!?]*")
FIRST = re.compile(rf"\s*[\"']?(?:[(\[]{L}[)\]]|{L}[.):,](?=\s|$)|{L}\s[-–—](?=\s))")
RIGHT = r"is\s+(?:right|correct|true|best|the\b(?!\s+(?:wrong|incorrect|false)))"
CAPITAL_FIRST = re.compile(rf"\s*([A-Z]|[0-9]{{1,2}})\s+(?:{RIGHT}|because|since)\b")
BRACKETS = re.compile(rf"(?<![A-Za-z0-9_])[(\[]{L}[)\]]")
ARTICLE = r"(?!\s+(?!because\b|since\b|is\b|and\b|or\b)\w)"  # what may not follow an `a`
NOUN = re.compile(
    rf"\b(?:option|choice|letter)\s+[\"']?(?:([Aa])\b{ARTICLE}|([B-Zb-z]|[0-9]{{1,2}})\b)(?!['’]\w)",
    re.IGNORECASE,
)
# One that stands between "is" and a label: "clearly", "most likely", ", therefore,".
ADVERB = r"(?:(?:most\s+)?(?!hardly|unlikely|barely|scarcely)\w+ly|therefore|thus|hence|then|indeed|still)"
VERB = re.compile(
    rf"\b(?:is|be|it['’]s|choose|pick|select|say|with|:)\s+(?:(?i:{ADVERB})\s+)?([A-Z])\b"
    r"(?=[\s.,;!]*$|\s+(?:because|since)\b)"
)
SEVERAL = re.compile(r"\b[A-Z]\b(?:\s*(?:,|/|&|\band\b|\bor\b)+\s*(?:or\s+|and\s+)?\b[A-Z]\b)+")
ONE = r"(?:[0-9]{1,2}|\w)"
SEVERAL_ALONE = re.compile(
    rf"\W*(?:both\s+)?{ONE}(?:\s*(?:,|/|&|\band\b|\bor\b)+\s*{ONE})+\W*", re.IGNORECASE
)
VERDICT = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s+(?:option|choice|one))\b"
    r"(?:\s+(?:here|to\s+the\s+question|must|should|would|will|might|could))*"
    rf"(?:\s*(?::|=)|\s+(?:is|be|was)\b\s*:?(?:[\s,]+{ADVERB}\b,?(?=\s+[\"'(\[]*{L}\b))?)"
    r"|\b(?:so|therefore|thus|hence|but)\b[,:]?"
    rf"(?=\s+(?:(?-i:[A-Z])\b|[(\[]{L}[)\]])(?:[\s.,;!]*$|[.!;]\s|[。！\n]|\s+(?:{RIGHT}|because|since)\b))"
    r"|答案(?:应该)?(?:是|为|选|:|选:|是:)",
    re.IGNORECASE,
)
REASON = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=\w)[.!?](?=\s|$)|[。！？\n]")
LONE_LETTER = re.compile(r"[a-z]")


def named(text: str, offer: Offer) -> frozenset[int]:
    """Places of the options that a text names."""
    text = clean(TAGGED.sub(r"\nAnswer: \1\n", text))
    if whole := same_text(text, offer):
        return whole
    if (alone := ALONE.fullmatch(text)) and (one := offer.at(alone[1])):
        return one
    verdicts = [mentions(verdict(text[match.end() :]), offer) for match in VERDICT.finditer(text)]
    if any(verdicts):
        return frozenset().union(*verdicts)
    return mentions(text, offer)


def same_text(text: str, offer: Offer) -> frozenset[int]:
    said = plain(text)
    return frozenset(i for i, option in enumerate(offer.texts) if said and option == said)


def verdict(text: str) -> str:
    """The rest of the sentence behind `the answer is`; the dot of a label at its start ends none."""
    start = first.end() if (first := FIRST.match(text)) else 0
    end = SENTENCE.search(text, max(start, len(text) - len(text.lstrip())))
    return text[: end.start()] if end else text


def mentions(text: str, offer: Offer) -> frozenset[int]:
    """All options named anywhere in a text, up to a reason."""
    if (reason := REASON.search(text)) and (before := mentions(text[: reason.start()], offer)):
        return before
    if (whole := same_text(text, offer)) or (
        (alone := ALONE.fullmatch(text)) and (whole := offer.at(alone[1]))
    ):
        return whole
    labels = frozenset().union(*(offer.at(label) for label in labels_in(text)))
    texts = texts_in(text, offer)
    return labels.union(*(one for one in texts if not one & labels))


def labels_in(text: str) -> Iterator[str]:
    for first in (FIRST.match(text), CAPITAL_FIRST.match(text)):
        if first:
            yield label_of(first)
    for pattern in (BRACKETS, NOUN, VERB):
        yield from (label_of(match) for match in pattern.finditer(text))
    for match in SEVERAL.finditer(text):
        yield from re.findall(r"\b[A-Z]\b", match[0])
    if SEVERAL_ALONE.fullmatch(text):
        yield from re.findall(rf"\b{ONE}\b", text)
    for line in text.splitlines():
        if alone := ALONE.fullmatch(line):
            yield alone[1]


def texts_in(text: str, offer: Offer) -> list[frozenset[int]]:
    """For each option's text that stands in a text as whole words: the places of the options that have it."""
    said, found = plain(text), []
    for option in sorted(set(offer.texts), key=len, reverse=True):
        if not option or option not in said or LONE_LETTER.fullmatch(option):  # "a" is an article, too
            continue
        before = r"(?<![\w-])(?<!\w[.,])" if option[0].isascii() else ""
        after = r"(?![\w-]|[.,]\w)" if option[-1].isascii() else ""
        said, count = re.subn(before + re.escape(option) + after, " | ", said)
        if count:
            found.append(frozenset(i for i, other in enumerate(offer.texts) if other == option))
    return found
