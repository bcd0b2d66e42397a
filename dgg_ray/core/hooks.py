"""Whether what a strategy defines is ever called.

A hook with a name that nobody calls would be a method that does nothing, without a word.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from dgg_ray.core.errors import nearest
from dgg_ray.core.interfaces import Strategy

# How many arguments the loop gives to each.
HOOKS = {
    name: list(inspect.signature(hook).parameters)[1:]
    for name, hook in vars(Strategy).items()
    if inspect.isfunction(hook) and not name.startswith("_")
}
# A method that begins like this and is called by nobody was meant to be called by the loop.
VERBS = ("begin", "start", "end", "finish", "on", "before", "after", "pre", "post", "edit", "modify", "load")


def faults(strategy: type[Strategy]) -> Iterator[tuple[str, str, str]]:
    """(rule, found, nearest legal name) of each hook that would not be called, or not as it is written."""
    own = [
        cls for cls in strategy.__mro__ if issubclass(cls, Strategy) and cls.__module__ != Strategy.__module__
    ]
    yield from unkept(strategy, own)
    for name in dict.fromkeys(name for cls in own for name in vars(cls)):
        hook = inspect.getattr_static(strategy, name)
        if name in HOOKS:
            yield from unfit(name, hook)
        elif inspect.isfunction(hook) and not name.startswith("_"):
            near = nearest(name, HOOKS)
            meant = near or name.split("_")[0] in VERBS
            if meant and not any(name in called(cls.__module__) for cls in own):
                legal = ", ".join(HOOKS)
                yield (
                    f"{name} is called by nobody; the hooks are {legal}; begin a helper's name with _",
                    "",
                    near,
                )


def unkept(strategy: type[Strategy], own: list[type[Strategy]]) -> Iterator[tuple[str, str, str]]:
    """Faults of attributes that look like a setting, or a memory, and are none."""
    settings = {f.name for f in fields(strategy)}
    for name in ("starts_plain", "simultaneous"):
        if name in settings:
            yield f"{name} is the class's own and no setting: write `{name} = True`, without a type", "", ""
    if any("memory" in vars(cls) for cls in own):
        yield "memory must not be redefined: what is in it is kept with a stage's snapshots", "", ""
    if vars(strategy).get("starts_plain") is not True:
        return
    if strategy.simultaneous:
        yield "must not be both simultaneous and starts_plain: no hook would ever be called", "", ""
    hands = [name for name in ("state", "load_state") if any(name in vars(cls) for cls in own)]
    if hands:
        rule = "starts_plain must be left out: the first task's stage is shared, and hands nothing over"
        yield f"{rule} to {' and '.join(hands)}", "", ""


def unfit(name: str, hook: object) -> Iterator[tuple[str, str, str]]:
    """A fault where the loop's call would not fit the hook's parameters."""
    wanted = HOOKS[name]
    given = wanted if isinstance(hook, staticmethod) else ["self", *wanted]
    hook = getattr(hook, "__func__", hook)  # of static and class methods
    if not callable(hook):
        yield f"{name} must be a method", repr(hook), ""
        return
    takes = inspect.signature(hook)
    try:
        takes.bind(*given)
    except TypeError:
        yield f"{name} must take ({', '.join(given)})", str(takes), ""


def called(module: str) -> set[str]:
    """Names that a file takes from objects, but for those that a method of the same name takes."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return set()
    found = set()

    def visit(node: ast.AST, inside: str) -> None:
        if isinstance(node, ast.FunctionDef):
            inside = node.name
        if isinstance(node, ast.Attribute) and node.attr != inside:
            found.add(node.attr)
        for part in ast.iter_child_nodes(node):
            visit(part, inside)

    visit(ast.parse(Path(file).read_text(encoding="utf-8")), "")
    return found
