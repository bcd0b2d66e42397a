"""Questions and answers from a record: one pair of `text` and `answer`, or one for each two turns.

    {"text": …, "answer": …}
    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}
    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]}

The names of turns may be mixed. A content may be a list of parts, {type: text, text} and {type: image}. A
system turn is a fault, since a model would not be shown it; so are all other roles, and turns that do not
alternate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dgg_ray.core.errors import nearest
from dgg_ray.readers import _unread_keys
from dgg_ray.readers._data_faults import Faults, Place
from dgg_ray.readers._records import text_of

TOKEN = "<image>"
TURNS = ("conversations", "messages")
KEYS = ("id", "question_id", "image", *TURNS, "text", "answer", "references", "choices")  # of a record
TURN_KEYS = ("from", "value", "role", "content")
ASKS = ("human", "user")
ANSWERS = ("gpt", "assistant")
# Tokens that other formats and models have for a picture or another medium.
MEDIUM = re.compile(
    r"<\|?(?:image|img|picture|video|audio|speech|sound|point_?cloud|vision)s?"
    r"(?:[ _-]?(?:\d+|pad|placeholder|here|start|end|token|bos|eos|patch))?\|?>",
    re.IGNORECASE,
)

Pairs = list[tuple[str, str]]  # (question, answer), the question still with its token


def pairs(
    fields: Mapping[str, Any], references: Sequence[str], meant: set[str], place: Place, faults: Faults
) -> Pairs:
    """The questions and answers; [] after a fault that leaves nothing.

    meant: keys that are missing, which was told already.
    """
    ways = [key for key in TURNS if fields.get(key) is not None]
    if len(ways) > 1:
        faults.add(place, "must hold `conversations` or `messages`, not both")
        return []
    if ways:
        found = conversation(fields[ways[0]], place.at(ways[0]), faults)
        agree(fields, found, ways[0], place, faults)
        return found
    answer = fields.get("answer")
    if "text" not in fields or (answer is None and not references):
        odd = [key for key in fields if key not in KEYS]
        near = next((key for found in odd if (key := likely(found)) and key not in fields), "")
        names = ", ".join(fields) or "none"
        rule = "must hold `conversations`, or `text` and `answer`"
        if not meant & {*TURNS, "text", "answer"}:
            faults.add(place, rule, f"the keys {names}", lambda: near)
        return []
    question = asked(fields["text"], place.at("text"), faults)
    if answer is None:
        return [(question, references[0])]
    return [(question, answered(answer, place.at("answer"), faults))]


def likely(key: str) -> str:
    return _unread_keys.OTHERS.get(key.lower()) or nearest(key, (*TURNS, "text", "answer"))


def agree(fields: Mapping[str, Any], found: Pairs, key: str, place: Place, faults: Faults) -> None:
    """Beside turns, `text` and `answer` may stand only as what the turns say."""
    for name, said in (("text", 0), ("answer", 1)):
        other = fields.get(name)
        if other is None or not found:
            continue
        texts = {without_token(pair[said]) for pair in found}
        if texts != {without_token(str(other))}:
            faults.add(place.at(name), f"must be what `{key}` says, or be left out", repr(other))


def conversation(turns: Any, place: Place, faults: Faults) -> Pairs:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        faults.add(place, "must be a list of {from, value}", repr(turns))
        return []
    said = [
        turn_of(turn, Place(f"{place.path}[{i}]", place.file, place.line), faults)
        for i, turn in enumerate(turns)
    ]
    if said and said[0].role == "system" and _unread_keys.empty(said[0].content):
        said = said[1:]
    who = [turn.role for turn in said]
    if "system" in who:
        rule = (
            "must be pairs of human and gpt: a model is not shown a system turn; write it into the question"
        )
        faults.add(place, rule, ", ".join(who))
        return []
    if not who or len(who) % 2 or not all(role in (ANSWERS if i % 2 else ASKS) for i, role in enumerate(who)):
        faults.add(place, "must be pairs of human and gpt", ", ".join(who) or "no turn")
        return []
    if len(who) > 2:
        faults.note(place, "several turns, of which each is asked alone, without those before it")
    return [
        (asked(ask.content, ask.place, faults), answered(answer.content, answer.place, faults))
        for ask, answer in zip(said[::2], said[1::2], strict=True)
    ]


class Turn(NamedTuple):
    """role: in lower case. place: of its content."""

    role: str
    content: Any
    place: Place


def turn_of(turn: Mapping[str, Any], place: Place, faults: Faults) -> Turn:
    if tuple(turn) != TURN_KEYS[:2]:
        _unread_keys.check(turn, TURN_KEYS, None, place, faults)
        for one, other in (("from", "role"), ("value", "content")):
            if one in turn and other in turn and turn[one] != turn[other]:
                faults.add(place, f"must hold `{one}` or `{other}`, not both")
    role = turn["from"] if "from" in turn else turn.get("role")
    key = "content" if "content" in turn and "value" not in turn else "value"
    content, at = turn.get(key), place.at(key)
    return Turn(
        str(role).strip().lower(), joined(content, at, faults) if isinstance(content, list) else content, at
    )


def joined(parts: list[Any], place: Place, faults: Faults) -> Any:
    """The text of a content in parts, with the token where a picture stands."""
    texts = []
    for part in parts:
        full = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
        if full.keys() == {"type", "text"} and full["type"] == "text" and isinstance(full["text"], str):
            texts.append(full["text"])
        elif full == {"type": "image"}:
            texts.append(TOKEN)
        else:
            rule = "must be text, or parts {type: text, text} and {type: image}, the picture under `image`"
            faults.add(place, rule, repr(part))
    return "\n".join(texts) or None


# -- texts -----------------------------------------------------------------------------------------


def asked(value: Any, place: Place, faults: Faults) -> str:
    question = text_of(value, place, faults)
    if "<" not in question:
        return question
    if not without_token(question):
        faults.add(place, f"must hold a question beside {TOKEN}", repr(value))
    if "<" in (rest := question.replace(TOKEN, "")) and (found := MEDIUM.search(rest)):
        faults.add(place, f"must hold no token of a medium but {TOKEN}", found[0])
    return question


def answered(value: Any, place: Place, faults: Faults) -> str:
    answer = text_of(value, place, faults)
    no_token(answer, place, faults)
    return answer


def no_token(text: str, place: Place, faults: Faults) -> None:
    if "<" in text and (found := MEDIUM.search(text)):
        faults.add(place, "must hold no token of a picture or another medium: an answer is text", found[0])


def without_token(question: str) -> str:
    for token in (f"{TOKEN}\n", f"\n{TOKEN}", TOKEN):
        question = question.replace(token, "")
    return question.strip()
