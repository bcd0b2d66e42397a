"""Question-answer pairs from a record: one of `text` and `answer`, or one for every two turns.

    {"text": …, "answer": …}
    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}
    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]}

Keys and roles of the two forms may be mixed. A content may be a list of parts, {type: text, text} and {type:
image}. A system turn is a fault, because a model would not be shown it; so are all other roles, and turns
that do not alternate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dgg_ray.core.errors import nearest_name
from dgg_ray.readers._data_files import Faults, Location, text_of
from dgg_ray.readers._unread_keys import SYNONYMS, check_unread_keys, is_empty

IMAGE_TOKEN = "<image>"
TURN_LISTS = ("conversations", "messages")
RECORD_KEYS = ("id", "question_id", "image", *TURN_LISTS, "text", "answer", "references", "choices")
TURN_KEYS = ("from", "value", "role", "content")
HUMAN_ROLES = ("human", "user")
MODEL_ROLES = ("gpt", "assistant")
PAIRS_RULE = "must be pairs of human and gpt turns"
# Tokens by which other formats and models mark an image or another medium.
MEDIA_TOKEN = re.compile(
    r"<\|?(?:image|img|picture|video|audio|speech|sound|point_?cloud|vision)s?"
    r"(?:[ _-]?(?:\d+|pad|placeholder|here|start|end|token|bos|eos|patch))?\|?>",
    re.IGNORECASE,
)

Pairs = list[tuple[str, str]]  # (question, answer), the question still with its image token


def question_answer_pairs(
    fields: Mapping[str, Any],
    references: Sequence[str],
    faulty_keys: set[str],
    location: Location,
    faults: Faults,
) -> Pairs:
    """Return the record's questions and answers; [] after a fault that leaves none.

    faulty_keys: keys that are missing, as faults say already.
    """
    turn_lists = [key for key in TURN_LISTS if fields.get(key) is not None]
    if len(turn_lists) > 1:
        faults.add(location, "must contain `conversations` or `messages`, not both")
        return []
    if turn_lists:
        (key,) = turn_lists
        pairs = pairs_of_turns(fields[key], location.key(key), faults)
        check_agreement(fields, pairs, key, location, faults)
        return pairs
    answer = fields.get("answer")
    if "text" not in fields or (answer is None and not references):
        if not faulty_keys & {*TURN_LISTS, "text", "answer"}:
            rule = "must contain `conversations`, or `text` and `answer`"
            names = ", ".join(fields) or "none"
            faults.add(location, rule, f"the keys {names}", lambda: suggest_key(fields))
        return []
    question = question_text(fields["text"], location.key("text"), faults)
    if answer is None:
        return [(question, references[0])]
    return [(question, answer_text(answer, location.key("answer"), faults))]


def suggest_key(fields: Mapping[str, Any]) -> str:
    """Return the missing key for which an unknown key of the record probably stands; empty if none does."""
    for key in fields:
        if key not in RECORD_KEYS:
            meant = SYNONYMS.get(key.lower()) or nearest_name(key, (*TURN_LISTS, "text", "answer"))
            if meant and meant not in fields:
                return meant
    return ""


def check_agreement(
    fields: Mapping[str, Any], pairs: Pairs, key: str, location: Location, faults: Faults
) -> None:
    """Add a fault if the record has turns, and a `text` or `answer` that differs from them."""
    for name, part in (("text", 0), ("answer", 1)):
        value = fields.get(name)
        if value is None or not pairs:
            continue
        texts = {without_token(pair[part]) for pair in pairs}
        if texts != {without_token(str(value))}:
            faults.add(location.key(name), f"must agree with `{key}`, or be left out", repr(value))


def pairs_of_turns(turns: Any, location: Location, faults: Faults) -> Pairs:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        faults.add(location, "must be a list of {from, value}", repr(turns))
        return []
    parsed = [parse_turn(turn, location.item(i), faults) for i, turn in enumerate(turns)]
    if parsed and parsed[0].role == "system" and is_empty(parsed[0].content):
        parsed = parsed[1:]
    roles = [turn.role for turn in parsed]
    if "system" in roles:
        rule = f"{PAIRS_RULE}: a model is not shown a system turn; write it into the question"
        faults.add(location, rule, ", ".join(roles))
        return []
    expected = (HUMAN_ROLES, MODEL_ROLES)
    if not roles or len(roles) % 2 or not all(role in expected[i % 2] for i, role in enumerate(roles)):
        faults.add(location, PAIRS_RULE, ", ".join(roles) or "no turn")
        return []
    if len(roles) > 2:
        faults.add_note(
            location, "conversations of several turns, whose questions are asked without the earlier turns"
        )
    return [
        (
            question_text(question.content, question.location, faults),
            answer_text(answer.content, answer.location, faults),
        )
        for question, answer in zip(parsed[::2], parsed[1::2], strict=True)
    ]


class Turn(NamedTuple):
    """A turn of a conversation. role: in lower case. location: of the content."""

    role: str
    content: Any
    location: Location


def parse_turn(turn: Mapping[str, Any], location: Location, faults: Faults) -> Turn:
    if tuple(turn) != TURN_KEYS[:2]:
        check_unread_keys(turn, TURN_KEYS, None, location, faults)
        for key, other in (("from", "role"), ("value", "content")):
            if key in turn and other in turn and turn[key] != turn[other]:
                faults.add(location, f"must contain `{key}` or `{other}`, not both")
    role = turn["from"] if "from" in turn else turn.get("role")
    content_key = "content" if "content" in turn and "value" not in turn else "value"
    content = turn.get(content_key)
    if isinstance(content, list):
        content = join_parts(content, location.key(content_key), faults)
    return Turn(str(role).strip().lower(), content, location.key(content_key))


def join_parts(parts: list[Any], location: Location, faults: Faults) -> Any:
    """Return the text of a content in parts, with the token for an image; None if there is none."""
    texts = []
    for part in parts:
        content = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
        is_text = content.keys() == {"type", "text"} and content["type"] == "text"
        if is_text and isinstance(content["text"], str):
            texts.append(content["text"])
        elif content == {"type": "image"}:
            texts.append(IMAGE_TOKEN)
        else:
            rule = "must be text, or parts {type: text, text} and {type: image}, the image under `image`"
            faults.add(location, rule, repr(part))
    return "\n".join(texts) or None


# -- texts -----------------------------------------------------------------------------------------


def question_text(value: Any, location: Location, faults: Faults) -> str:
    question = text_of(value, location, faults)
    if "<" not in question:
        return question
    if not without_token(question):
        faults.add(location, f"must contain a question besides {IMAGE_TOKEN}", repr(value))
    rest = question.replace(IMAGE_TOKEN, "")
    if "<" in rest and (token := MEDIA_TOKEN.search(rest)):
        faults.add(location, f"must contain no media token except {IMAGE_TOKEN}", token[0])
    return question


def answer_text(value: Any, location: Location, faults: Faults) -> str:
    answer = text_of(value, location, faults)
    refuse_media_tokens(answer, location, faults)
    return answer


def refuse_media_tokens(text: str, location: Location, faults: Faults) -> None:
    if "<" in text and (token := MEDIA_TOKEN.search(text)):
        faults.add(location, "must contain no media token, as answers are text", token[0])


def without_token(question: str) -> str:
    """Return the question without the image token and its line break."""
    for token in (f"{IMAGE_TOKEN}\n", f"\n{IMAGE_TOKEN}", IMAGE_TOKEN):
        question = question.replace(token, "")
    return question.strip()
