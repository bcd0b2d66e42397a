"""Build frozen dataclasses from plain data, and translate pydantic's errors into faults in our words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dgg_ray.config.descriptions import descriptions, summary
from dgg_ray.core.errors import Fault, nearest_name

BROKEN = object()  # stands for what could not be built
LARGEST = 2**63
WHOLE = "must be a whole number of 63 bits, -2^63 at least and below 2^63"


def check_type(kind: Any, raw: Any, at: str, faults: list[Fault]) -> Any:
    """Build a dataclass or another type from `raw`; BROKEN, with faults added, where a rule is broken."""
    settings: Any = kind
    if is_dataclass(kind) and not isinstance(raw, Mapping):
        faults.append(Fault(at, "must be a mapping of settings", show_value(raw)))
        return BROKEN
    if beyond := list(large_number_faults(raw, at)):
        faults += beyond
        return BROKEN
    try:
        # By way of JSON: its strict mode accepts a list for a tuple and text for a path, but not "8" for 8.
        return type_adapter(settings).validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        faults += to_faults(error, raw, at, kind)
        return BROKEN


@cache
def type_adapter(kind: Any) -> TypeAdapter[Any]:
    """Make an adapter once for each type, because making one takes longer than its checks."""
    return TypeAdapter(kind)


def large_number_faults(raw: Any, at: str) -> Iterator[Fault]:
    """Find whole numbers that tables, random generators and object stores cannot hold."""
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from large_number_faults(value, f"{at}.{key}")
    elif isinstance(raw, list | tuple):
        for i, value in enumerate(raw):
            yield from large_number_faults(value, f"{at}[{i}]")
    elif isinstance(raw, int) and not -LARGEST <= raw < LARGEST:
        yield Fault(at, WHOLE, show_value(raw))


def to_faults(error: ValidationError, raw: Any, at: str, kind: Any) -> list[Fault]:
    """Translate pydantic's errors; of a union's branches, only the errors of the one that fits best count."""
    found: dict[str, list[tuple[bool, Fault]]] = {}
    for item in error.errors(include_url=False):
        path, inner = at, raw
        for i, step in enumerate(item["loc"]):
            if isinstance(inner, Mapping) and step in inner:
                path, inner = f"{path}.{step}", inner[step]
            elif isinstance(inner, list) and isinstance(step, int) and step < len(inner):
                path, inner = f"{path}[{step}]", inner[step]
            elif item["type"] == "missing" and i + 1 == len(item["loc"]):  # an earlier one may name a form
                path = f"{path}.{step}"
        wrong_type = item["type"].endswith("_type")
        rule = rule_text(item["type"], item.get("ctx", {}), item["msg"])
        legal = legal_names(kind, item["loc"][:-1])
        near = nearest_name(str(item["loc"][-1]), legal) if rule == "no such setting" else ""
        if rule == "no such setting" and legal and not near:
            rule += f"; there are {', '.join(legal)}"
        expected = re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))
        near = near or (nearest_name(str(inner), expected) if expected else "")
        value = "" if item["type"] in ("missing", "unexpected_keyword_argument") else show_value(inner)
        found.setdefault(path, []).append((wrong_type, Fault(path, rule, value, near)))
    faults = []
    for path, spoken in found.items():
        deeper = any(other.startswith((path + ".", path + "[")) for other in found)
        exact = [fault for wrong_type, fault in spoken if not wrong_type]
        if exact:
            faults.append(exact[0])
        elif not deeper:
            rules = " or ".join(dict.fromkeys(f.rule.removeprefix("must be ") for _, f in spoken))
            faults.append(replace(spoken[0][1], rule=f"must be {rules}"))
    return faults


def legal_names(kind: Any, steps: Sequence[int | str]) -> list[str]:
    """The settings of the dataclasses that a type has at a location; none where it has no dataclass there."""
    kinds = dataclasses_in(kind)
    for step in steps:
        hints = [hints[step] for one in kinds if step in (hints := get_type_hints(one))]
        kinds = [inner for hint in hints for inner in dataclasses_in(hint)] if hints else kinds
    return [f.name for one in kinds for f in fields(one)]


def dataclasses_in(kind: Any) -> list[Any]:
    """The dataclasses that a type consists of, such as `tuple[str | A, …]` of A."""
    if is_dataclass(kind):
        return [kind]
    return [inner for argument in get_args(kind) for inner in dataclasses_in(argument)]


def rule_text(kind: str, context: Mapping[str, Any], message: str) -> str:
    """Translate a pydantic error type into a rule."""
    words = {
        "missing": "is required",
        "missing_argument": "is required",
        "unexpected_keyword_argument": "no such setting",
        "greater_than_equal": "must be at least {ge}",
        "greater_than": "must be greater than {gt}",
        "less_than_equal": "must be at most {le}",
        "less_than": "must be less than {lt}",
        "literal_error": "must be one of {expected}",
        "too_short": "needs at least {min_length}, has {actual_length}",
        "too_long": "takes at most {max_length}, has {actual_length}",
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "string_type": "must be text",
        "bool_type": "must be true or false",
        "tuple_type": "must be a list",
        "list_type": "must be a list",
        "dict_type": "must be a mapping",
        "mapping_type": "must be a mapping",
        "dataclass_type": "must be a mapping of settings",
        "path_type": "must be a path",
        "none_required": "must be empty",
    }
    if kind not in words:
        return message[0].lower() + message[1:]
    return words[kind].format(**{k: f"{v:g}" if isinstance(v, float) else v for k, v in context.items()})


def show_value(value: Any, width: int = 60) -> str:
    text = repr(value) if not isinstance(value, Mapping) else "a mapping"
    return text if len(text) <= width else text[: width - 1] + "…"


def json_schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a dataclass; the types that it refers to are added to `definitions`."""
    found = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
    definitions.update(found.pop("$defs", {}))
    found["description"] = summary(kind)
    for name, text in descriptions(kind).items():
        found["properties"][name]["description"] = text
    return found
