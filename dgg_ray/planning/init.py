"""`dgg-ray init`: write a first study file for the tasks in a folder, with a comment on every setting.

The file is a starting point, to be edited. It is checked as `dgg-ray plan` checks it before it is written.
"""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, factorial
from pathlib import Path
from typing import Any

from dgg_ray.config import loader, yaml_edit, yaml_reader
from dgg_ray.config.descriptions import descriptions
from dgg_ray.config.loader import KEYS
from dgg_ray.config.sections import Orders, Protocol, Search, Workers
from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import Fault, StudyError, nearest_name
from dgg_ray.core.interfaces import Adapter, Training
from dgg_ray.planning.discover import DiscoveredTask, discover_tasks
from dgg_ray.storage import fetching
from dgg_ray.storage.fetching import path_below

COMMENT_WIDTH = 100
EMBEDDED_TASKS = ("digits", "words", "shapes", "charts")
SMALL = {"epochs": 3, "batch_size": 16, "learning_rate": 5e-3}  # for the embedded model, which is tiny
LARGE = {"epochs": 1, "batch_size": 64, "micro_batch_size": 4, "learning_rate": 2e-4, "precision": "bf16"}
OPTIONS = {"name": "--name", "model": "--model", "model.path": "--model", "model.revision": "--model"}
Prompt = Callable[[str, str], str]  # (a question, the value of an empty answer) → the answer


@dataclass(frozen=True)
class NewStudy:
    """The new study file, and notes on its tasks."""

    file: Path
    notes: tuple[str, ...]

    def __str__(self) -> str:
        file = shlex.quote(str(self.file))
        return "\n".join([*self.notes, f"{self.file} is written; next: dgg-ray plan {file}"])


def init(
    data: Path | None = None,
    embedded: bool = False,
    model: str | None = None,
    name: str | None = None,
    file: Path | None = None,
    ask: Prompt | None = None,
) -> NewStudy:
    """Write a study file; StudyError holds every fault, and then nothing is written.

    data: folder with train and test files of at least two tasks (discover.py).
    embedded: the tasks in the package instead, which need no data.
    model: the name of a model, or NAME=FOLDER, or NAME=HUB_NAME@COMMIT; None is the embedded one.
    name: of the study; None is the data folder's. file: None is NAME.yaml in the current folder.
    ask: asks a person for what was not given; None where nobody can answer.
    """
    if ask and data is None and not embedded:
        answer = ask("Folder with your data (empty: the embedded tasks)", "")
        data, embedded = (Path(answer), False) if answer else (None, True)
    if ask and model is None:
        model = ask(f"Model: {', '.join(plugins.names('models'))}, as NAME or NAME=FOLDER", "embedded")
    default = "embedded" if data is None else data.resolve().name
    name = name or (ask("Name of the study", default) if ask else default)
    file = file or Path(ask("File to write", f"{name}.yaml") if ask else f"{name}.yaml")
    faults = list(argument_faults(data, embedded, file))
    model_section = parse_model(model or "embedded", faults)
    tasks: list[DiscoveredTask] = []
    left_out: list[str] = []
    if data and not faults:
        tasks, left_out = discover_tasks(data.absolute())
        if len(tasks) < 2:
            rule = (
                f"must hold train and test files of at least 2 tasks, in LLaVA's format; holds {len(tasks)}"
            )
            faults.append(Fault("--data", rule, repr(str(data))))
            faults += [Fault("--data", f"left out: {reason}") for reason in left_out]
    if faults:
        raise StudyError(faults, "arguments")
    text = study_text(name, model_section, tasks, file.absolute().parent)
    study = check_text(text, file.absolute().parent)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("x", encoding="utf-8") as new_file:
        new_file.write(text)
    notes = [f"{task.name}: {format_sizes(task)}; {task.reason}: {task.scorer}" for task in tasks]
    notes += [f"left out: {reason}" for reason in left_out]
    return NewStudy(file, (*notes, *study.data.warnings))


def argument_faults(data: Path | None, embedded: bool, file: Path) -> Iterator[Fault]:
    if data is None and not embedded:
        rule = "is required: a folder with your tasks, or give --embedded for the built-in tasks"
        yield Fault("--data", rule)
    if data is not None and embedded:
        yield Fault("--embedded", "needs no data: give it or --data, not both", repr(str(data)))
    if data is not None and not data.is_dir():
        siblings = [p.name for p in data.parent.iterdir()] if data.parent.is_dir() else []
        near = nearest_name(data.name, siblings)
        yield Fault("--data", "must be a folder that exists", repr(str(data)), near)
    if os.path.lexists(file):
        yield Fault("--out-file", "must be a new file: nothing is overwritten", repr(str(file)))


def check_text(text: str, folder: Path) -> Study:
    """Return the study that a file with this text in that folder would hold.

    Raise StudyError with its faults, named after the command's options.
    """
    raw, faults = loader.with_store(yaml_reader.read_yaml(text)[0], None)
    root = os.environ.get("DGG_RAY_DATA") or folder
    try:
        return loader.complete(raw, yaml_reader.LineNumbers(), faults, "arguments", root)
    except StudyError as error:
        named = [replace(fault, path=OPTIONS.get(fault.path, fault.path)) for fault in error.faults]
        raise StudyError(named, "arguments") from None


def parse_model(text: str, faults: list[Fault]) -> dict[str, Any]:
    """Return the `model` section for NAME, NAME=FOLDER or NAME=HUB_NAME@COMMIT."""
    name, _, source = text.partition("=")
    models = plugins.names("models")
    if name not in models:
        near = nearest_name(name, models)
        faults.append(Fault("--model", f"must be one of {', '.join(models)}", repr(name), near))
        return {}
    needs_weights = "path" in {f.name for f in fields(plugins.find("models", name))}
    if needs_weights and not source:
        rule = f"{name} needs its weights: {name}=FOLDER, or {name}=HUB_NAME@COMMIT"
        faults.append(Fault("--model", rule, repr(text)))
    if source and not needs_weights:
        faults.append(Fault("--model", f"{name} comes with its weights: give {name} alone", repr(text)))
    if not needs_weights or not source:
        return {"name": name}
    if (folder := fetching.as_path(source)).is_dir():
        return {"name": name, "path": str(folder.absolute())}
    path, _, revision = source.rpartition("@")
    if not (path and revision):
        rule = f"must be a folder that exists, as {name}=FOLDER, or {name}=HUB_NAME@COMMIT"
        faults.append(Fault("--model", rule, repr(text)))
    return {"name": name, "path": path, "revision": revision}


def format_sizes(task: DiscoveredTask) -> str:
    counts = {split: f"{count:,} {split}" for split, count in task.examples.items()}
    counts.setdefault("validation", "validation a tenth of train")
    return ", ".join(counts[split] for split in ("train", "validation", "test"))


# -- the text --------------------------------------------------------------------------------------


def study_text(name: str, model: Mapping[str, Any], tasks: Sequence[DiscoveredTask], folder: Path) -> str:
    """Return the study file's text.

    folder: of the file. Paths below it, or below DGG_RAY_DATA where that is set, are written relative.
    """
    is_small = model["name"] == "embedded"
    root = fetching.absolute(os.environ.get("DGG_RAY_DATA") or folder)
    smallest = min((task.examples["train"] for task in tasks), default=200)
    buffers = sorted({max(1, smallest // 20), max(1, smallest // 10)})
    orders = factorial(min(len(tasks) or len(EMBEDDED_TASKS), 8))
    held_out = min(4, orders - min(2, orders - 1))
    space: dict[str, Any] = {"strategy.alpha": {"per_task": [0, 0.1, 0.3, 1.0]}}
    if len(buffers) > 1:
        space["strategy.buffer"] = buffers
    max_new_tokens = count_answer_tokens([task.longest_answer for task in tasks], model)
    dgg = {"name": "dgg", "alpha": 0.1, "buffer": buffers[0]}
    sections = [
        section("name", name),
        section("model", model, plugins.find("models", model["name"])),
        tasks_section(tasks, root),
        section("strategy", dgg, plugins.find("strategies", "dgg")),
        section("adapter", {"rank": 8}, Adapter),
        section("training", SMALL if is_small else LARGE | {"gradient_checkpointing": True}, Training),
        section("orders", {"design": "random", "count": min(2, orders - 1)}, Orders),
        section("seeds", "per_order"),
        section("search", {"space": space, "trials": 12, "objective": "faa"}, Search),
        section("protocol", {"held_out": held_out, "max_new_tokens": max_new_tokens}, Protocol),
        section("workers", {"groups": 1, "gpus": 0 if is_small else 1}, Workers),
    ]
    head = "# A first study. `dgg-ray plan` predicts its cost; `dgg-ray schema` describes all settings."
    return "\n\n".join([head, *sections]) + "\n"


def section(key: str, value: Any, settings_class: type | None = None) -> str:
    """Format a key of the file with its description, and each of its settings with theirs."""
    lines = comment(KEYS[key])
    if not isinstance(value, Mapping):
        return "\n".join([*lines, f"{key}: {yaml_edit.to_inline(value)}"])
    lines.append(f"{key}:")
    texts = descriptions(settings_class) if settings_class else {}
    for name, setting in value.items():
        if name in texts:
            lines += comment(texts[name], "  ")
        lines.append(f"  {name}: {yaml_edit.to_inline(setting)}")
    if others := [name for name in texts if name not in value]:
        lines += comment(f"More settings, at their defaults: {', '.join(others)}.", "  ")
    return "\n".join(lines)


def tasks_section(tasks: Sequence[DiscoveredTask], root: str) -> str:
    lines = [*comment(KEYS["tasks"]), "tasks:"]
    if not tasks:
        entries = [{"name": name, "reader": "embedded", "train": 200} for name in EMBEDDED_TASKS]
        return "\n".join([*lines, *(f"  - {yaml_edit.to_inline(entry)}" for entry in entries)])
    for task in tasks:
        lines += comment(f"{format_sizes(task)}; {task.reason}.", "  ")
        entry: dict[str, Any] = {"name": task.name, "reader": "llava"}
        entry |= {split: path_below(file, root) for split, file in sorted(task.files.items(), reverse=True)}
        if task.images and task.images != task.files["train"].parent:
            entry["images"] = path_below(task.images, root)
        lines.append(f"  - {yaml_edit.to_inline(entry | {'scorer': task.scorer})}")
    return "\n".join(lines)


def comment(text: str, indent: str = "") -> list[str]:
    """Wrap a text into comment lines."""
    prefix = f"{indent}# "
    wrapper = textwrap.TextWrapper(
        COMMENT_WIDTH,
        initial_indent=prefix,
        subsequent_indent=prefix,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text)


def count_answer_tokens(answers: Iterable[str], model: Mapping[str, Any]) -> int:
    """Count the tokens of the longest answer, its end included; two where there are no answers.

    By the model's own tokenizer if its folder is on this machine; else a token is taken for three bytes.
    """
    answers = list(answers)
    if not answers:
        return 2
    folder = Path(plugins.plugin_module("models", "embedded").FOLDER)
    if model["name"] != "embedded":
        folder = Path(model["path"])
    if (file := folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer  # it comes with transformers, and loads much faster

        tokenizer = Tokenizer.from_file(str(file))
        return 1 + max(len(tokenizer.encode(a, add_special_tokens=False).ids) for a in answers)
    return 1 + max(ceil(len(a.encode()) / 3) for a in answers)
