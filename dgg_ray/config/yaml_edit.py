"""Change one value of a YAML text and leave every other character as it was, comments included.

    set_value("a: 1 # one\n", ("b",), [2, 3])        →  "a: 1 # one\nb: [2, 3]\n"

YAML's own parser finds the place, and the text is changed there. Some texts cannot be changed this way, for
instance where an anchor is involved. That shows when the result is parsed, so callers compare it with what
they wanted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

Path = Sequence[str | int]
LINE_BREAKS = "\x85\u2028\u2029"
WIDTH = 100_000  # columns; a value stays on one line


def set_value(text: str, path: Path, value: Any) -> str:
    """Return the text with a value at a path of keys and list indexes.

    The path's last step may be a new key, or the index right after a list's last item. Raise KeyError where
    no node is on the way to it, or where the text is not YAML.
    """
    try:
        parent = node_at(yaml.compose(text, yaml.SafeLoader), path[:-1])
    except yaml.YAMLError as error:
        raise KeyError(path[-1]) from error
    if (node := child_of(parent, path[-1])) is not None:
        return replace_node(text, parent, node, value)
    if isinstance(parent, yaml.ScalarNode):
        raise KeyError(path[-1])
    return add_child(text, parent, path[-1], value)


def replace_node(text: str, parent: Any, node: Any, value: Any) -> str:
    before, after = text[: node.start_mark.index], text[end_of(node, text) :]
    if lines := as_block(parent, value):
        return before.rstrip() + lines + after
    return before + to_inline(value) + after


def add_child(text: str, parent: Any, key: str | int, value: Any) -> str:
    """Add a value behind the parent's last child; `key`: its key in a mapping, ignored in a list."""
    entry = to_inline(value)
    if isinstance(parent, yaml.MappingNode):
        entry = f"{to_inline(key)}:{as_block(parent, value) or ' ' + entry}"
    if parent.flow_style:
        if parent.value:
            end, entry = end_of(parent.value[-1], text), f", {entry}"
        else:
            end = parent.start_mark.index + 1
        return text[:end] + entry + text[end:]
    dash = "- " if isinstance(parent, yaml.SequenceNode) else ""
    line_end = text.find("\n", end_of(parent, text))
    line_end = len(text) if line_end < 0 else line_end
    return text[:line_end] + "\n" + " " * parent.start_mark.column + dash + entry + text[line_end:]


def node_at(node: Any, path: Path) -> Any:
    for step in path:
        if (node := child_of(node, step)) is None:
            raise KeyError(step)
    return node


def child_of(node: Any, step: str | int) -> Any:
    """Return the node under a key or at an index; None where there is none."""
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step]
    return None


def end_of(node: Any, text: str) -> int:
    """Return the index right behind the node's last character.

    The parser's own mark may be behind the comments that follow the node.
    """
    if isinstance(node, tuple):  # key and value of a mapping
        return end_of(node[1], text)
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        return end_of(node.value[-1], text)
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(text[start:end].rstrip())


def as_block(parent: Any, value: Any) -> str:
    """Format a list of lists as lines below a key; empty for other values and inside braces."""
    if parent.flow_style or not isinstance(value, list) or not all(isinstance(v, list) for v in value):
        return ""
    indent = "\n" + " " * (parent.start_mark.column + 2) + "- "
    return "".join(indent + to_inline(v) for v in value)


class InlineDumper(yaml.SafeDumper):
    """Quotes strings with characters that YAML alone takes for line breaks, so that they are escaped."""


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(mark in text for mark in LINE_BREAKS) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


InlineDumper.add_representer(str, represent_text)


def to_inline(value: Any) -> str:
    """Format a value on one line."""
    text = yaml.dump(
        value, Dumper=InlineDumper, default_flow_style=True, width=WIDTH, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


# -- whole files -----------------------------------------------------------------------------------

PLAIN = re.compile(rf"[A-Za-z/~][^:#'\"{{}}\[\],&*!|>%@`\n{LINE_BREAKS}]*")
RESERVED = ("true", "false", "yes", "no", "on", "off", "y", "n", "null", "~")


class QuotingDumper(yaml.SafeDumper):
    """Quotes every string that some version of YAML may read as something else."""


def represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = PLAIN.fullmatch(text) and text.lower() not in RESERVED
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


QuotingDumper.add_representer(str, represent_string)


def to_file_text(content: Any) -> str:
    """Format the content of a file, mappings as blocks and the innermost values on one line."""
    return yaml.dump(
        content,
        Dumper=QuotingDumper,
        default_flow_style=None,
        sort_keys=False,
        allow_unicode=True,
        width=WIDTH,
    )
