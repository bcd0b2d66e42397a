"""Read YAML as a person reads it; notation that two versions of YAML read differently is a fault.

    -12  0x1f  1_000       whole numbers, of 63 bits         true yes on       true; false no off: false
    1.5  .5  1e-3          numbers                           ~ null            nothing
    2026-11-29  a  "12"    text, exactly as it is written    keys              always text, as written

    010     8 in YAML 1.1, 10 in 1.2       1:30        90 in YAML 1.1, text in 1.2
    0,01    two entries inside braces      .inf 1e999  not finite

Also faults: a repeated key, a tag, an alias inside what it names, and aliases that expand a short file into a
long one. Anchors and the merge key `<<` are supported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import yaml

from dgg_ray.config.parsing import LARGEST, WHOLE, show_value
from dgg_ray.core.errors import Fault

LONGEST = 2**20  # characters of a file: room for a list of seeds; data do not belong here
DEEPEST = 40  # nesting; the deepest setting is at 6
TOO_DEEP = f"must not be nested deeper than {DEEPEST} lists or mappings"
SPARE = 10_000  # values that aliases may add to the written ones

LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+(\.[0-9_]*)?")
CLOCK = re.compile(r"[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9]*)?")
DECIMAL = re.compile(r"[-+]?[0-9]+(_[0-9]{3})*")
BASED = re.compile(r"[-+]?0([xX][0-9a-fA-F]+|o[0-7]+|b[01]+)")
FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]{3})*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
ENDLESS = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+([eE][-+]?[0-9]+)?")
BOOLEAN = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
WORDS = {form: value for word, value in BOOLEAN.items() for form in (word, word.title(), word.upper())}
WORDS |= dict.fromkeys(("", "~", "null", "Null", "NULL"))
UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
PLAIN, TAG = "plain", "tag:yaml.org,2002:"


class LineNumbers(dict[str, int]):
    """The 1-based line of each dotted path.

    written: path → (text in the file, value read), for numbers, booleans and null.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, tuple[str, Any]] = {}


class Loader(yaml.SafeLoader):
    """Leaves plain scalars as text, in place of YAML 1.1's own resolvers."""

    yaml_implicit_resolvers = {None: [(PLAIN, re.compile(""))]}  # noqa: RUF012


class UnreadableYamlError(Exception):
    """The text is not YAML; holds the fault."""

    def __init__(self, rule: str, line: int = 0) -> None:
        super().__init__(rule)
        self.fault = Fault("study", rule, line=line)


def read_yaml(text: str) -> tuple[Any, LineNumbers, list[Fault]]:
    """Read a text: (content, lines, faults of notation). Raises UnreadableYamlError where it is not YAML."""
    if len(text) > LONGEST:
        raise UnreadableYamlError(f"must have at most {LONGEST:,} characters, has {len(text):,}")
    try:
        node = yaml.compose(text, Loader)
    except RecursionError:
        raise UnreadableYamlError(TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise parse_error(error, text) from None
    reading = NodeReader(text)
    content = reading.value(node, "", 0) if node else None
    return content, reading.lines, reading.faults


def parse_error(error: yaml.YAMLError, text: str) -> UnreadableYamlError:
    """Translate the parser's error, with its line; the two most frequent ones in plain words."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    line = mark.line + 1 if mark else 0
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, int(error.position)) + 1
    if "another document" in problem:
        problem = "a file must hold one document, and a second one begins here (`---`)"
    elif "'\\t'" in problem:
        problem = "there is a tab here; indent with spaces"
    return UnreadableYamlError(f"must be YAML: {problem}", line)


class NodeReader:
    """Reads a text's nodes in one pass. inside: identities of the nodes that are being read."""

    def __init__(self, text: str) -> None:
        self.text, self.lines, self.faults = text, LineNumbers(), list[Fault]()
        self.inside: set[int] = set()
        self.count = 0

    def fault(self, at: str, rule: str, node: yaml.Node, found: str = "") -> None:
        self.faults.append(Fault(at or "study", rule, found, line=node.start_mark.line + 1))

    def value(self, node: yaml.Node, at: str, depth: int) -> Any:
        """Read the value at a path; None after a fault."""
        self.count += 1
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, at)
        kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag not in (PLAIN, f"{TAG}{kind}"):
            self.fault(at, "tags have no meaning in a study: leave it out", node, f"`{node.tag}`")
        if id(node) in self.inside:
            self.fault(at, "an alias is inside the value that it names, which would never end", node)
            return None
        if self.count > len(self.text) + SPARE:
            raise UnreadableYamlError("its aliases expand to too many values: write them out")
        if depth > DEEPEST:
            raise UnreadableYamlError(TOO_DEEP, node.start_mark.line + 1)
        self.inside.add(id(node))
        if isinstance(node, yaml.MappingNode):
            found: Any = self.mapping(node, at, depth)
        else:
            found = []
            for i, item in enumerate(node.value):
                self.lines[f"{at}[{i}]"] = item.start_mark.line + 1
                found.append(self.value(item, f"{at}[{i}]", depth + 1))
        self.inside.discard(id(node))
        return found

    def mapping(self, node: yaml.MappingNode, at: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        last: tuple[str, yaml.Node] | None = None
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.fault(at, "the name of a setting must be text", key)
                continue
            name = self.written_text(key, at)
            inner = f"{at}.{name}" if at else name
            if key.tag == PLAIN and name == "<<":
                merged = {**self.merge(value, at, depth), **merged}
                continue
            if last and (text := self.with_comma(last[1], key, value)):
                self.fault(last[0], "a number is written with a point, not with a comma", key, text)
                continue
            if not name:
                self.fault(at, "needs a name before the colon", key)
                continue
            if name in found:
                self.fault(inner, "is given twice", key)
            self.lines[inner] = key.start_mark.line + 1
            found[name] = self.value(value, inner, depth + 1)
            last = inner, value
        return {**{k: v for k, v in merged.items() if k not in found}, **found}

    def merge(self, node: yaml.Node, at: str, depth: int) -> dict[str, Any]:
        """Read the entries that `<<` takes from one mapping or several; the first one wins."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        entries: dict[str, Any] = {}
        for source in sources:
            if isinstance(source, yaml.MappingNode):
                entries = {**(self.value(source, at, depth + 1) or {}), **entries}
            else:
                self.fault(f"{at}.<<" if at else "<<", "must be an alias of a mapping", source)
        return entries

    def with_comma(self, before: yaml.Node, key: yaml.ScalarNode, value: yaml.Node) -> str:
        """Find `0,01` inside braces, which YAML reads as 0 and an entry named 01; empty if there is none."""
        empty = isinstance(value, yaml.ScalarNode) and value.start_mark.index == value.end_mark.index
        if not (empty and isinstance(before, yaml.ScalarNode) and before.tag == key.tag == PLAIN):
            return ""
        text = self.text[before.start_mark.index : key.end_mark.index]
        return text if COMMA.fullmatch(text) else ""

    def scalar(self, node: yaml.ScalarNode, at: str) -> Any:
        if node.tag != PLAIN:
            if node.tag != f"{TAG}str":
                self.fault(at, "tags have no meaning in a study: leave it out", node, f"`{node.tag}`")
            return self.written_text(node, at)
        text = node.value
        if text in WORDS:
            found: Any = WORDS[text]
        elif rule := ambiguity(text):
            self.fault(at, rule, node, text)
            found = text
        else:
            try:
                found = as_number(text)
            except OverflowError as error:
                self.fault(at, str(error), node, show_value(text)[1:-1])
                found = None
        if isinstance(found, str):
            return self.written_text(node, at)
        self.lines.written[at] = text, found
        return found

    def written_text(self, node: yaml.ScalarNode, at: str) -> str:
        """Read a text; `"\\ud83d\\ude00"`, as JSON writes characters beyond 16 bits, is one character."""
        text = node.value
        if UNWRITABLE.search(text):
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if UNWRITABLE.search(text) or ("\ufffd" in text and "\ufffd" not in node.value):
            self.fault(
                at, "must be text without control characters and half characters", node, show_value(text)
            )
            return UNWRITABLE.sub("", text)
        return text


def ambiguity(text: str) -> str:
    """Say why a plain scalar must be written differently; empty where it need not."""
    if LEADING_ZERO.fullmatch(text):
        plain = re.sub(r"^([-+]?)0[0_]*(?=[0-9])", r"\1", text)
        return f"begins with 0, which YAML 1.1 reads as base 8: write {plain}, or '{text}' for text"
    if CLOCK.fullmatch(text):
        return (
            f"holds a colon, which YAML 1.1 reads as base 60: write '{text}' for text, or [1, 2] for a list"
        )
    return ""


def as_number(text: str) -> int | float | str:
    """Read a number; the text if it is none. Raises OverflowError with the reason if it is out of range."""
    if DECIMAL.fullmatch(text) or BASED.fullmatch(text):
        found = int(text, 0) if len(text) < 100 else LARGEST  # Python itself refuses very long ones
        if not -LARGEST <= found < LARGEST:
            raise OverflowError(WHOLE)
        return found
    if ENDLESS.fullmatch(text):
        raise OverflowError("must be a finite number")
    if not FLOAT.fullmatch(text):
        return text
    found = float(text)
    if abs(found) == float("inf"):
        raise OverflowError("must be a finite number: the largest is about 1.8e308")
    if not found and re.search("[1-9]", re.split("[eE]", text)[0]):
        raise OverflowError("is too small to be distinguished from 0: write 0")
    return found


# -- faults of meaning, in terms of what is written ------------------------------------------------


def add_lines(faults: list[Fault], lines: dict[str, int]) -> Iterator[Fault]:
    """Add lines to faults, and a hint where a text was read as something else.

    A path with a fault of notation has no other fault.
    """
    noted = {fault.path for fault in faults if fault.line and not fault.file}
    for fault in faults:
        if fault.line or fault.file:
            yield fault
        elif fault.path not in noted:
            yield replace(add_hint(fault, lines), line=line_of(fault.path, lines))


def line_of(path: str, lines: dict[str, int]) -> int:
    """The line of a path, or of its nearest known parent; 0 where none is known."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path, 0)


def add_hint(fault: Fault, lines: dict[str, int]) -> Fault:
    """Add a hint to a fault that comes from how YAML reads a word or a number."""
    written = lines.written if isinstance(lines, LineNumbers) else {}
    text, value = written.get(fault.path) or written.get(fault.path.removesuffix("[0]")) or ("", None)
    if text and fault.found == show_value(value) and text.lower() != str(value).lower():
        fault = replace(fault, found=f"{text}, which is read as {str(value).lower()}")
    if text and "must be text" in fault.rule:
        return replace(fault, rule=f"{fault.rule}: put it in quotes")
    if COMMA.fullmatch(fault.found[1:-1]) and "number" in fault.rule:
        return replace(fault, rule=f"{fault.rule}, written with a point")
    return fault
