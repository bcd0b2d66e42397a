"""Changes one place of a YAML text and leaves every other character as it was, comments and all.

    put("a: 1 # one\n", ("b",), [2, 3])        →  "a: 1 # one\nb: [2, 3]\n"

Places are found by YAML's own parser. What a text cannot take in this way (anchors, say) shows when the
result is parsed; whoever changes a text compares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

Path = Sequence[str | int]
SIZE = 100_000  # columns; a value stands on one line


def put(text: str, path: Path, value: Any) -> str:
    """The text with `value` at a path of keys and places; the last one may be new, one after the end too.

    KeyError where nothing stands on the way to it, or the text is no YAML.
    """
    try:
        above = at(yaml.compose(text, yaml.SafeLoader), path[:-1])
    except yaml.YAMLError as error:
        raise KeyError(path[-1]) from error
    if (old := child(above, path[-1])) is not None:
        before, rows = text[: old.start_mark.index], block(above, value)
        return (before.rstrip() + rows if rows else before + written(value)) + text[end(old, text) :]
    if isinstance(above, yaml.ScalarNode):
        raise KeyError(path[-1])
    new = written(value)
    if isinstance(above, yaml.MappingNode):
        new = f"{written(path[-1])}:{block(above, value) or ' ' + new}"
    if above.flow_style:
        inside = end(above.value[-1], text) if above.value else above.start_mark.index + 1
        return text[:inside] + (", " if above.value else "") + new + text[inside:]
    dash = "- " if isinstance(above, yaml.SequenceNode) else ""
    stop = text.find("\n", end(above, text))
    stop = len(text) if stop < 0 else stop
    return text[:stop] + "\n" + " " * above.start_mark.column + dash + new + text[stop:]


def at(node: Any, path: Path) -> Any:
    for step in path:
        if (node := child(node, step)) is None:
            raise KeyError(step)
    return node


def child(node: Any, step: str | int) -> Any:
    """What stands under a key or at a place; None where nothing does."""
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step]
    return None


def end(node: Any, text: str) -> int:
    """Index right behind the node's last character; the parser's own mark may stand after comments."""
    if isinstance(node, tuple):  # key and value of a mapping
        return end(node[1], text)
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        return end(node.value[-1], text)
    start, stop = node.start_mark.index, node.end_mark.index
    return start + len(text[start:stop].rstrip())


def block(above: Any, value: Any) -> str:
    """A list of lists as lines below a key; empty for other values and inside braces."""
    if above.flow_style or not isinstance(value, list) or not all(isinstance(v, list) for v in value):
        return ""
    indent = "\n" + " " * (above.start_mark.column + 2) + "- "
    return "".join(indent + written(v) for v in value)


def written(value: Any) -> str:
    """The value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=SIZE, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


class Dumper(yaml.SafeDumper):
    """Quotes every text that a reader of YAML, of whatever version, may take for something else."""


PLAIN = re.compile(r"[A-Za-z/~][^:#'\"{}\[\],&*!|>%@`\n]*")
WORDS = ("true", "false", "yes", "no", "on", "off", "y", "n", "null", "~")
Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str",
        text,
        style=None if PLAIN.fullmatch(text) and text.lower() not in WORDS else '"',
    ),
)


def dumped(content: Any) -> str:
    """The text of a file with this content, mappings as blocks and what stands innermost on one line."""
    return yaml.dump(
        content, Dumper=Dumper, default_flow_style=None, sort_keys=False, allow_unicode=True, width=SIZE
    )
