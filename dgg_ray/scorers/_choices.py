"""Multiple-choice answers: the options that a question offers, and the options that an answer names.

Options of a question, each with its label A, B, … Z or a, b, … z or 1, 2, … 99 (or from 0, or 01, 02, …):

    A. red    A) red    A: red    (A) red    [A] red    **A** red    Option A: red    A - red

They stand on lines of their own or in one line, also after `Options:` or `Choices:`. There are at least two,
and each has a text. Options on lines come before runs inside a line (so that "S. Holm" is no option); of
several runs the last counts. An option ends where the next begins, with its line, or before a sentence that
asks for the answer ("Answer with the letter.").

An answer names an option

    by its label alone           B   b   (B)   B.   B!   B。   [B]   **B**   \\boxed{B}   选B; alone on a line
    by its label at the start    B. green   (b) green   B: green   B, green   B because …   B is right
    by its label at the end      so B   therefore, B.   not A, but B: the text before it does not count
    by its label elsewhere       (B)   option B   choice B   it is B.   I choose B   A or B: both are named
    by its text                  green, as whole words; "dark red" names that, and not "red"

After "the answer is …", also "clearly", "Answer: …" or "<answer>…</answer>", only the rest of that sentence
counts. The text after "because" or "since" is not read where an option was named before. A text that two
options share names both, unless a label decides. An article is no label: "A cat", "the answer is a dog".
"B is wrong" alone does not name B; other negations are not understood: "not a cat" names the cat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from dgg_ray.core.text_normalization import normalize_text, visible_text

BOLD = re.compile(r"(\*\*|__|`)\s*[(\[]?([0-9]{1,2}|\w)[)\]]?\s*[.):]?\s*\1\s*[.):]?(?!\w)")
BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([0-9]{1,2}|\w)\)?\s*\}+")
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
MARKUP = re.compile(r"\*\*|__|`")
ANNOUNCEMENT = re.compile(r"(?:\b(?:options|choices)\b|选项|选择)[^\n:]{0,20}:", re.IGNORECASE)
REQUEST = re.compile(
    r"(?<=[.?!;)])\s+(?i:please\s+)?(?i:answer|select|choose|respond|reply|give|pick|return|write)\b"
    r"|\s+Answer(?:\s+with\b|\s*:\s*$)"
)
LABEL = r"(?:([A-Z])|([a-z])|([0-9]{1,2}))"
LABEL_FORMS = (  # a label before an option's text; each has the three groups of LABEL
    rf"\({LABEL}\)",
    rf"\[{LABEL}\]",
    rf"{LABEL}\)",
    rf"{LABEL}、",
    rf"{LABEL}\.",
    rf"{LABEL}:",
    rf"{LABEL}\s[-–—](?=\s)",
)
WORD = r"(?:(?i:option|choice)\s+)?"
LINE_LABELS = [re.compile(rf"^[ \t>*•-]*{WORD}{form}(?=[ \t]*\S)", re.MULTILINE) for form in LABEL_FORMS]
SPACED_FORMS = [
    form + r"(?=\s|[^\x00-\x7f])" if form.endswith((".", ":")) else form for form in LABEL_FORMS[:6]
]
INLINE_LABELS = [re.compile(rf"(?<![A-Za-z0-9_.(\[]){WORD}{form}") for form in SPACED_FORMS]
GLUED_LABELS = [re.compile(rf"{WORD}{form}") for form in LABEL_FORMS[:2]]  # `Options:(A) red(B) green`
FIRST_LABELS = ("a", "0", "1")
JOINER = re.compile(r"[\s,;|/]*(?:\b(?:and|or))?[\s,;|/]*$", re.IGNORECASE)


@dataclass(frozen=True)
class AnswerOptions:
    """A question's options. labels: as answers name them; texts: normalised; both in the options' order."""

    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def labelled(self, label: str) -> frozenset[int]:
        """Return the index of the option with a label, as a set; empty where there is none."""
        label = plain_label(label)
        return frozenset([self.labels.index(label)]) if label in self.labels else frozenset()


def strip_markup(text: str) -> str:
    """Remove markup; a label in bold or in a box becomes one in brackets."""
    text = visible_text(text)
    if "*" in text or "_" in text or "`" in text or "\\" in text:
        text = MARKUP.sub("", BOLD.sub(r"(\2) ", BOXED.sub(r"(\1)", text)))
    return text


# -- the options of a question ---------------------------------------------------------------------


@lru_cache(maxsize=65536)
def options_of(question: str, choices: tuple[str, ...] = ()) -> AnswerOptions:
    """Return the options of a record's choices, which may bring their labels, or else of its question."""
    if not choices:
        return parse_options(question)
    labelled = [next(leading_labels([strip_markup(choice)], LINE_LABELS), None) for choice in choices]
    labels = [pair[0] for pair in labelled if pair]
    if len(labels) == len(choices) and are_consecutive(labels):
        return AnswerOptions(tuple(labels), tuple(normalize_text(pair[1]) for pair in labelled if pair))
    shown = parse_options(question)
    texts = tuple(normalize_text(choice) for choice in choices)
    labels = list(shown.labels) if shown.texts == texts else letter_labels(len(texts))
    return AnswerOptions(tuple(labels), texts)


def letter_labels(count: int) -> list[str]:
    return [chr(ord("a") + i) if i < 26 else f"#{i}" for i in range(count)]


def leading_labels(lines: Iterable[str], forms: Iterable[re.Pattern[str]]) -> Iterator[tuple[str, str]]:
    """Yield (label, text after it) of each line that begins with a label."""
    for line in lines:
        for form in forms:
            if match := form.match(line):
                yield label_of(match), line[match.end() :]
                break


def are_consecutive(labels: Sequence[str]) -> bool:
    return labels[0] in FIRST_LABELS and all(
        second == next_label(first) for first, second in pairwise(labels)
    )


def next_label(label: str) -> str:
    """Return the label that follows: `b` after `a`, 10 after 9."""
    return str(int(label) + 1) if label.isdecimal() else chr(ord(label) + 1)


def plain_label(label: str) -> str:
    """Return the form in which labels are compared: `b` for `B`, 7 for 07."""
    return str(int(label)) if label.isdecimal() else label.casefold()


def parse_options(question: str) -> AnswerOptions:
    """Find the options that a question shows; none where it shows none."""
    text = strip_markup(question)
    *before, announced = ANNOUNCEMENT.split(text)
    attempts = [(text, LINE_LABELS), (text, INLINE_LABELS)]
    if before:
        attempts = [
            (announced, LINE_LABELS),
            (announced, INLINE_LABELS),
            (announced, GLUED_LABELS),
            *attempts,
        ]
    for part, forms in attempts:
        for form in forms:
            if options := last_run(part, list(form.finditer(part)), forms is LINE_LABELS):
                return options
    return AnswerOptions()


def last_run(text: str, matches: list[re.Match[str]], on_lines: bool) -> AnswerOptions | None:
    """Return the last run of consecutive labels whose options all have a text; None where there is none."""
    best: tuple[tuple[int, ...], AnswerOptions] | None = None
    for start, first in enumerate(matches):
        if label_of(first) not in FIRST_LABELS:
            continue
        run = [first]
        for match in matches[start + 1 :]:
            if has_same_form(match, first) and label_of(match) == next_label(label_of(run[-1])):
                run.append(match)
        ends = [*(match.start() for match in run[1:]), len(text)]
        texts = [option_text(text[m.end() : end], end == len(text)) for m, end in zip(run, ends, strict=True)]
        if len(run) < 2 or not all(texts) or (on_lines and goes_on_inline(run, texts)):
            continue
        rank = (run[-1].start(), len(run), first.start())
        if best is None or rank > best[0]:
            best = rank, AnswerOptions(tuple(map(label_of, run)), tuple(map(normalize_text, texts)))
    return best[1] if best else None


def has_same_form(match: re.Match[str], other: re.Match[str]) -> bool:
    """Return whether two labels are both capitals, both small letters, or both numbers."""
    return [group is None for group in match.groups()] == [group is None for group in other.groups()]


def goes_on_inline(run: list[re.Match[str]], texts: list[str]) -> bool:
    """Return whether the last line holds the next label too: `B) green C) blue`, two options in a line."""
    following = re.escape(next_label(label_of(run[-1])))
    return re.search(rf"(?i)\(?\b{following}\)\s", texts[-1]) is not None


def option_text(text: str, last: bool) -> str:
    """Return an option's own words: one line, without a conjunction or a request for an answer at its end."""
    text = text.strip().split("\n")[0]
    if last and (request := REQUEST.search(text)):
        text = text[: request.start()]
    text = JOINER.sub("", text)
    text = text.rstrip("?") if last else text
    return text.strip() if re.search(r"\w", text) or re.search(r"[^\x00-\x7f]|[<>=+*/%-]", text) else ""


def label_of(match: re.Match[str]) -> str:
    return plain_label(next(group for group in match.groups() if group))


# -- the options that an answer names --------------------------------------------------------------

L = r"([A-Za-z]|[0-9]{1,2})"
LONE_LABEL = re.compile(rf"[\s\"'(\[{{]*(?:选|選)?[\s\"'(\[{{]*{L}[\s\"')\]}}.。:,;!?]*")
LEADING_LABEL = re.compile(rf"\s*[\"']?(?:[(\[]{L}[)\]]|{L}[.):,](?=\s|$)|{L}\s[-–—](?=\s))")
IS_RIGHT = r"is\s+(?:right|correct|true|best|the\b(?!\s+(?:wrong|incorrect|false)))"
LEADING_CAPITAL = re.compile(rf"\s*([A-Z]|[0-9]{{1,2}})\s+(?:{IS_RIGHT}|because|since)\b")
BRACKETED_LABEL = re.compile(rf"(?<![A-Za-z0-9_])[(\[]{L}[)\]]")
ARTICLE = r"(?!\s+(?!because\b|since\b|is\b|and\b|or\b)\w)"  # rules out a word after `a`
LABEL_AFTER_NOUN = re.compile(
    rf"\b(?:option|choice|letter)\s+[\"']?(?:([Aa])\b{ARTICLE}|([B-Zb-z]|[0-9]{{1,2}})\b)(?!['’]\w)",
    re.IGNORECASE,
)
# An adverb between "is" and a label: "clearly", "most likely", ", therefore,".
ADVERB = r"(?:(?:most\s+)?(?!hardly|unlikely|barely|scarcely)\w+ly|therefore|thus|hence|then|indeed|still)"
LABEL_AFTER_VERB = re.compile(
    rf"\b(?:is|be|it['’]s|choose|pick|select|say|with|:)\s+(?:(?i:{ADVERB})\s+)?([A-Z])\b"
    r"(?=[\s.,;!]*$|\s+(?:because|since)\b)"
)
LABEL_LIST = re.compile(r"\b[A-Z]\b(?:\s*(?:,|/|&|\band\b|\bor\b)+\s*(?:or\s+|and\s+)?\b[A-Z]\b)+")
ONE = r"(?:[0-9]{1,2}|\w)"
LONE_LABEL_LIST = re.compile(
    rf"\W*(?:both\s+)?{ONE}(?:\s*(?:,|/|&|\band\b|\bor\b)+\s*{ONE})+\W*", re.IGNORECASE
)
ANSWER_IS = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s+(?:option|choice|one))\b"
    r"(?:\s+(?:here|to\s+the\s+question|must|should|would|will|might|could))*"
    rf"(?:\s*(?::|=)|\s+(?:is|be|was)\b\s*:?(?:[\s,]+{ADVERB}\b,?(?=\s+[\"'(\[]*{L}\b))?)"
    r"|\b(?:so|therefore|thus|hence|but)\b[,:]?"
    rf"(?=\s+(?:(?-i:[A-Z])\b|[(\[]{L}[)\]])(?:[\s.,;!]*$|[.!;]\s|[。！\n]|\s+(?:{IS_RIGHT}|because|since)\b))"
    r"|答案(?:应该)?(?:是|为|选|:|选:|是:)",
    re.IGNORECASE,
)
REASON = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=\w)[.!?](?=\s|$)|[。！？\n]")
LONE_LETTER = re.compile(r"[a-z]")


def named_options(text: str, options: AnswerOptions) -> frozenset[int]:
    """Return the indices of the options that a text names."""
    text = strip_markup(TAGGED.sub(r"\nAnswer: \1\n", text))
    if equal := options_with_text(text, options):
        return equal
    if (lone := LONE_LABEL.fullmatch(text)) and (option := options.labelled(lone[1])):
        return option
    stated = [
        mentioned_options(rest_of_sentence(text[match.end() :]), options)
        for match in ANSWER_IS.finditer(text)
    ]
    if any(stated):
        return frozenset().union(*stated)
    return mentioned_options(text, options)


def options_with_text(text: str, options: AnswerOptions) -> frozenset[int]:
    """Return the options whose text is the whole text."""
    normalized = normalize_text(text)
    return frozenset(i for i, option in enumerate(options.texts) if normalized and option == normalized)


def rest_of_sentence(text: str) -> str:
    """Return the text up to the end of its first sentence; the dot of a label at its start ends none."""
    start = label.end() if (label := LEADING_LABEL.match(text)) else 0
    end = SENTENCE_END.search(text, max(start, len(text) - len(text.lstrip())))
    return text[: end.start()] if end else text


def mentioned_options(text: str, options: AnswerOptions) -> frozenset[int]:
    """Return all options named anywhere in a text, up to a reason."""
    if (reason := REASON.search(text)) and (before := mentioned_options(text[: reason.start()], options)):
        return before
    if equal := options_with_text(text, options):
        return equal
    if (lone := LONE_LABEL.fullmatch(text)) and (option := options.labelled(lone[1])):
        return option
    by_label = frozenset().union(*(options.labelled(label) for label in labels_in(text)))
    return by_label.union(*(same for same in texts_in(text, options) if not same & by_label))


def labels_in(text: str) -> Iterator[str]:
    """Yield every label that a text uses as one."""
    for first in (LEADING_LABEL.match(text), LEADING_CAPITAL.match(text)):
        if first:
            yield label_of(first)
    for pattern in (BRACKETED_LABEL, LABEL_AFTER_NOUN, LABEL_AFTER_VERB):
        yield from (label_of(match) for match in pattern.finditer(text))
    for match in LABEL_LIST.finditer(text):
        yield from re.findall(r"\b[A-Z]\b", match[0])
    if LONE_LABEL_LIST.fullmatch(text):
        yield from re.findall(rf"\b{ONE}\b", text)
    for line in text.splitlines():
        if lone := LONE_LABEL.fullmatch(line):
            yield lone[1]


def texts_in(text: str, options: AnswerOptions) -> list[frozenset[int]]:
    """Return, for each option text that stands in a text as whole words, the options that have it."""
    remaining, mentioned = normalize_text(text), []
    for option in sorted(set(options.texts), key=len, reverse=True):
        if not option or option not in remaining or LONE_LETTER.fullmatch(option):  # "a" is an article, too
            continue
        before = r"(?<![\w-])(?<!\w[.,])" if option[0].isascii() else ""
        after = r"(?![\w-]|[.,]\w)" if option[-1].isascii() else ""
        remaining, count = re.subn(before + re.escape(option) + after, " | ", remaining)
        if count:
            mentioned.append(frozenset(i for i, other in enumerate(options.texts) if other == option))
    return mentioned
