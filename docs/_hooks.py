"""Pages that are made from the code: commands with their options, settings of a study file, methods."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import typer


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the reference in the place of its mark."""
    if "{{ commands }}" in markdown:
        markdown = markdown.replace("{{ commands }}", commands())
    if "{{ settings }}" in markdown:
        markdown = markdown.replace("{{ settings }}", settings())
    if "{{ methods }}" in markdown:
        markdown = markdown.replace("{{ methods }}", methods())
    return markdown


def commands() -> str:
    """Every command with its arguments and options, as its help has them."""
    from dgg_ray import cli

    parts = []
    for name, command in all_commands(typer.main.get_command(cli.app)):
        rows = [
            f"| {argument_name(parameter)} | {describe(parameter)} |"
            for parameter in command.params
            if parameter.name != "help"
        ]
        table = "\n".join(["| argument | meaning |", "|---|---|", *rows]) if rows else ""
        parts.append(f"## dgg-ray {name}\n\n{inspect.cleandoc(command.help or '')}\n\n{table}")
    return "\n\n".join(parts)


def all_commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each command with its name, those of a group after the group's."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def argument_name(parameter: Any) -> str:
    if parameter.param_type_name == "option":
        return f"`{', '.join(parameter.opts)}`"
    return str(parameter.metavar or parameter.name)


def describe(parameter: Any) -> str:
    text = parameter.help or ""
    default = getattr(parameter, "show_default", None)
    return f"{text} Default: {default}." if isinstance(default, str) else text


def settings() -> str:
    """Every section of a study file with its settings, defaults and descriptions."""
    from dgg_ray.config.descriptions import descriptions, summary
    from dgg_ray.config.loader import KEYS, PLUGIN_SECTIONS, SECTIONS
    from dgg_ray.core import plugins
    from dgg_ray.core.interfaces import AnswerStyles

    parts = [
        "\n".join(
            ["| key | meaning |", "|---|---|", *(f"| `{key}` | {text} |" for key, text in KEYS.items())]
        )
    ]
    for key, cls in SECTIONS.items():
        parts.append(f"## {key}\n\n{escape(summary(cls))}\n\n{table(cls, descriptions(cls))}")
    kinds = ("readers", *PLUGIN_SECTIONS.values())
    classes = {f"{kind}: {name}": plugins.find(kind, name) for kind in kinds for name in plugins.names(kind)}
    for title, cls in {"tasks: answer_styles": AnswerStyles, **classes}.items():
        parts.append(f"## {title}\n\n{escape(summary(cls))}\n\n{table(cls, descriptions(cls))}")
    return "\n\n".join(parts)


def methods() -> str:
    """Every strategy: what it is, how its weights are laid out, what it needs, how well it is known."""
    from dgg_ray.analysis.methods_table import describe_needs
    from dgg_ray.core import plugins

    rows = []
    for name in plugins.names("strategies"):
        strategy = plugins.find("strategies", name)()
        title = (plugins.plugin_module("strategies", name).__doc__ or "").partition("\n")[0]
        layout = strategy.layout()
        laid_out = f"`{type(layout).__module__.rpartition('.')[2]}`" if layout else "`lora`"
        known = strategy.known_from or "this project"
        rows.append(f"| `{name}` | {escape(title)} | {laid_out} | {describe_needs(strategy)} | {known} |")
    header = ["| name | method | layout | needs | known from |", "|---|---|---|---|---|"]
    return "\n".join([*header, *rows])


def table(cls: Any, texts: dict[str, str]) -> str:
    if not is_dataclass(cls) or not fields(cls):
        return ""
    rows = [f"| `{f.name}` | {default(f)} | {escape(texts.get(f.name, ''))} |" for f in fields(cls)]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def default(field: Any) -> str:
    if field.default is not MISSING:
        return f"`{field.default!r}`"
    return "" if field.default_factory is not MISSING else "required"


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("{", "&#123;")
