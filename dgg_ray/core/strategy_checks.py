"""Check that the training loop calls what a strategy class defines.

A hook whose name is misspelt would be a method that nobody calls, and nothing would say so.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from dgg_ray.core.errors import nearest_name
from dgg_ray.core.strategy import Strategy

# Hook → the names of its arguments.
HOOKS = {
    name: list(inspect.signature(hook).parameters)[1:]
    for name, hook in vars(Strategy).items()
    if inspect.isfunction(hook) and not name.startswith("_")
}
# An uncalled method whose name begins with one of these words was probably meant as a hook.
HOOK_VERBS = (
    *("begin", "start", "end", "finish", "on", "before", "after", "pre", "post", "edit", "modify", "load"),
)
KEPT = {
    "memory": "its content is saved in mid-stage checkpoints",
    "cache": "it begins empty in every stage",
    "context": "the training loop sets it",
}
# Attributes of the class that are no settings.
DECLARATIONS = ("starts_plain", "simultaneous", "per_task", "needs", "known_from")


def hook_faults(strategy: type[Strategy]) -> Iterator[tuple[str, str, str]]:
    """Yield (rule, value found, nearest legal name) of each definition that would not work as written."""
    classes = [
        cls for cls in strategy.__mro__ if issubclass(cls, Strategy) and cls.__module__ != Strategy.__module__
    ]
    yield from declaration_faults(strategy, classes)
    for name in dict.fromkeys(name for cls in classes for name in vars(cls)):
        method = inspect.getattr_static(strategy, name)
        if name in HOOKS:
            yield from signature_faults(name, method)
        elif inspect.isfunction(method) and not name.startswith("_"):
            near = nearest_name(name, HOOKS)
            looks_like_a_hook = near or name.split("_")[0] in HOOK_VERBS
            if looks_like_a_hook and not any(name in attributes_used(cls.__module__) for cls in classes):
                rule = f"{name} is called by nobody; the hooks are {', '.join(HOOKS)}"
                yield f"{rule}; begin a helper's name with _", "", near


def declaration_faults(
    strategy: type[Strategy], classes: list[type[Strategy]]
) -> Iterator[tuple[str, str, str]]:
    """Yield faults of class attributes: declarations written as settings, and contradictory ones.

    classes: the strategy's class and those of its ancestors that stand outside this package's interfaces.
    """
    settings = {f.name for f in fields(strategy)}
    for name in DECLARATIONS:
        if name in settings:
            yield f"{name} is the class's own and no setting: write `{name} = …`, without a type", "", ""
    if unknown := sorted({*strategy.per_task} - settings):
        yield f"per_task must name settings, and {' and '.join(unknown)} is none", "", ""
    for name, reason in KEPT.items():
        if any(name in vars(cls) for cls in classes):
            yield f"{name} must not be redefined: {reason}", "", ""
    if vars(strategy).get("starts_plain") is not True:
        return
    if strategy.simultaneous:
        yield "must not be both simultaneous and starts_plain: no hook would ever be called", "", ""
    state_hooks = [name for name in ("state", "load_state") if any(name in vars(cls) for cls in classes)]
    if state_hooks:
        rule = "starts_plain must be left out: the first task's stage is shared, and passes nothing on"
        yield f"{rule} to {' and '.join(state_hooks)}", "", ""


def signature_faults(name: str, hook: object) -> Iterator[tuple[str, str, str]]:
    """Yield a fault where the loop's call would not fit the hook's parameters."""
    arguments = HOOKS[name] if isinstance(hook, staticmethod) else ["self", *HOOKS[name]]
    hook = getattr(hook, "__func__", hook)  # of static and class methods
    if not callable(hook):
        yield f"{name} must be a method", repr(hook), ""
        return
    signature = inspect.signature(hook)
    try:
        signature.bind(*arguments)
    except TypeError:
        yield f"{name} must take ({', '.join(arguments)})", str(signature), ""


def attributes_used(module: str) -> set[str]:
    """Return the attribute names that a module's file uses, but not inside a method of the same name."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return set()
    used: set[str] = set()

    def visit(node: ast.AST, method: str) -> None:
        if isinstance(node, ast.FunctionDef):
            method = node.name
        if isinstance(node, ast.Attribute) and node.attr != method:
            used.add(node.attr)
        for child in ast.iter_child_nodes(node):
            visit(child, method)

    visit(ast.parse(Path(file).read_text(encoding="utf-8")), "")
    return used
