"""`dgg-ray init`: a study file for the tasks found in a folder, every setting with what it is.

The file is a beginning, to be edited. It is checked as `dgg-ray plan` checks it before it is kept.
"""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Callable, Iterable, Mapping
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
from dgg_ray.core.errors import Fault, StudyError, nearest
from dgg_ray.core.interfaces import Adapter, Training
from dgg_ray.planning import discover
from dgg_ray.planning.discover import Found
from dgg_ray.storage import fetching

WIDTH = 100  # of a comment
EMBEDDED = ("digits", "words", "shapes", "charts")
SMALL = {"epochs": 3, "batch_size": 16, "learning_rate": 5e-3}  # for the embedded model, which is tiny
LARGE = {"epochs": 1, "batch_size": 64, "micro_batch_size": 4, "learning_rate": 2e-4, "precision": "bf16"}
Ask = Callable[[str, str], str]  # a question, what an empty answer stands for → the answer


@dataclass(frozen=True)
class Written:
    """The new file, and what is to be known of it, in words."""

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
    ask: Ask | None = None,
) -> Written:
    """Write a study file; StudyError holds every fault, and then there is no file.

    data: folder with train and test files of at least two tasks (discover.py).
    embedded: the tasks in the package instead, which need no data.
    model: the name of a model, or NAME=FOLDER, or NAME=HUB_NAME@COMMIT; None is the embedded one.
    name: of the study; None is the data folder's. file: None is NAME.yaml here.
    ask: asks for what was not given; None where nobody can answer.
    """
    if ask and data is None and not embedded:
        data = (
            Path(given) if (given := ask("Folder with your data (empty: the embedded tasks)", "")) else None
        )
        embedded = data is None
    if ask and model is None:
        model = ask(f"Model: {', '.join(plugins.names('models'))}, as NAME or NAME=FOLDER", "embedded")
    usual = "embedded" if data is None else data.resolve().name
    name = name or (ask("Name of the study", usual) if ask else usual)
    file = file or Path(ask("File to write", f"{name}.yaml") if ask else f"{name}.yaml")
    faults = list(wrong(data, embedded, file))
    chosen = model_of(model or "embedded", faults)
    found, left = discover.tasks(data.absolute()) if data and data.is_dir() and not faults else ([], [])
    if data and not faults and len(found) < 2:
        rule = f"must hold train and test files of at least 2 tasks, in LLaVA's format; holds {len(found)}"
        faults += [
            Fault("--data", rule, repr(str(data))),
            *(Fault("--data", f"left out: {why}") for why in left),
        ]
    if faults:
        raise StudyError(faults, "arguments")
    text = page(name, chosen, found, file.absolute().parent)
    study = checked(text, file.absolute().parent)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("x", encoding="utf-8") as opened:
        opened.write(text)
    return Written(file, (*told(found), *(f"left out: {why}" for why in left), *study.warnings))


def wrong(data: Path | None, embedded: bool, file: Path) -> Iterable[Fault]:
    if data is None and not embedded:
        yield Fault(
            "--data", "is required: a folder with your tasks, or give --embedded for the built-in tasks"
        )
    if data is not None and embedded:
        yield Fault("--embedded", "needs no data: give it or --data, not both", repr(str(data)))
    if data is not None and not data.is_dir():
        near = nearest(data.name, [p.name for p in data.parent.iterdir()]) if data.parent.is_dir() else ""
        yield Fault("--data", "must be a folder that exists", repr(str(data)), near)
    if os.path.lexists(file):
        yield Fault("--out-file", "must be a new file: nothing is overwritten", repr(str(file)))


def checked(text: str, folder: Path) -> Study:
    """The study that a file with this text in that folder would hold; faults are those of the arguments."""
    raw, faults = loader.placed(yaml_reader.read(text)[0], None)
    try:
        return loader.completed(
            raw, yaml_reader.Lines(), faults, "arguments", os.environ.get("DGG_RAY_DATA") or folder
        )
    except StudyError as error:
        blamed = {"name": "--name", "model": "--model", "model.path": "--model", "model.revision": "--model"}
        faults = [replace(fault, path=blamed.get(fault.path, fault.path)) for fault in error.faults]
        raise StudyError(faults, "arguments") from None


def model_of(text: str, faults: list[Fault]) -> dict[str, Any]:
    """The `model` section that NAME, NAME=FOLDER or NAME=HUB_NAME@COMMIT stands for."""
    name, _, place = text.partition("=")
    known = plugins.names("models")
    if name not in known:
        faults.append(
            Fault("--model", f"must be one of {', '.join(known)}", repr(name), nearest(name, known))
        )
        return {}
    needs = "path" in {f.name for f in fields(plugins.find("models", name))}
    if needs and not place:
        rule = f"{name} needs its weights: {name}=FOLDER, or {name}=HUB_NAME@COMMIT"
        faults.append(Fault("--model", rule, repr(text)))
    if place and not needs:
        faults.append(Fault("--model", f"{name} comes with its weights: give {name} alone", repr(text)))
    if not needs or not place:
        return {"name": name}
    if (folder := fetching.path(place)).is_dir():
        return {"name": name, "path": str(folder.absolute())}
    path, _, revision = place.rpartition("@")
    if not (path and revision):
        rule = f"must be a folder that exists, as {name}=FOLDER, or {name}=HUB_NAME@COMMIT"
        faults.append(Fault("--model", rule, repr(text)))
    return {"name": name, "path": path, "revision": revision}


def told(found: Iterable[Found]) -> Iterable[str]:
    for task in found:
        yield f"{task.name}: {sizes(task)}; {task.answers}: {task.scorer}"


def sizes(task: Found) -> str:
    counts = {split: f"{count:,} {split}" for split, count in task.examples.items()}
    counts.setdefault("validation", "validation a tenth of train")
    return ", ".join(counts[split] for split in ("train", "validation", "test"))


# -- the text --------------------------------------------------------------------------------------


def page(name: str, model: Mapping[str, Any], found: list[Found], folder: Path) -> str:
    """The study file's text.

    folder: where it will lie: paths below it, or below DGG_RAY_DATA where that is set, are relative.
    """
    small = model["name"] == "embedded"
    count = len(found) or len(EMBEDDED)
    root = fetching.full(os.environ.get("DGG_RAY_DATA") or folder)
    least = min((task.examples["train"] for task in found), default=200)
    buffers = sorted({max(1, least // 20), max(1, least // 10)})
    total = factorial(min(count, 8))
    held = min(4, total - min(2, total - 1))
    strategy = plugins.find("strategies", "dgg")
    alpha = {"per_task": [0, 0.1, 0.3, 1.0]}
    space = {"strategy.alpha": alpha, **({"strategy.buffer": buffers} if len(buffers) > 1 else {})}
    longest = longest_answer([task.longest for task in found], model)
    sections = [
        section("name", name),
        section("model", model, plugins.find("models", model["name"])),
        tasks_section(found, root),
        section("strategy", {"name": "dgg", "alpha": 0.1, "buffer": buffers[0]}, strategy),
        section("adapter", {"rank": 8}, Adapter),
        section("training", SMALL if small else LARGE | {"gradient_checkpointing": True}, Training),
        section("orders", {"design": "random", "count": min(2, total - 1)}, Orders),
        section("seeds", "per_order"),
        section("search", {"space": space, "trials": 12, "objective": "faa"}, Search),
        section("protocol", {"held_out": held, "max_new_tokens": longest}, Protocol),
        section("workers", {"groups": 1, "gpus": 0 if small else 1}, Workers),
    ]
    head = (
        "# A beginning, to be edited. `dgg-ray plan` says what it costs, `dgg-ray schema` has all settings."
    )
    return "\n\n".join([head, *sections]) + "\n"


def section(key: str, value: Any, kind: type | None = None) -> str:
    """A key of the file with what it is, and each of its settings with what that is."""
    lines = commented(KEYS[key])
    if not isinstance(value, Mapping):
        return "\n".join([*lines, f"{key}: {yaml_edit.written(value)}"])
    lines.append(f"{key}:")
    texts = descriptions(kind) if kind else {}
    for name, inner in value.items():
        lines += commented(texts[name], "  ") if name in texts else []
        lines.append(f"  {name}: {yaml_edit.written(inner)}")
    if more := [name for name in texts if name not in value]:
        lines += commented(f"More settings, at their defaults: {', '.join(more)}.", "  ")
    return "\n".join(lines)


def tasks_section(found: list[Found], root: str) -> str:
    lines = [*commented(KEYS["tasks"]), "tasks:"]
    for name in () if found else EMBEDDED:
        lines.append(f"  - {yaml_edit.written({'name': name, 'reader': 'embedded', 'train': 200})}")
    for task in found:
        lines += commented(f"{sizes(task)}; {task.answers}.", "  ")
        entry: dict[str, Any] = {"name": task.name, "reader": "llava"}
        entry |= {split: placed(file, root) for split, file in sorted(task.files.items(), reverse=True)}
        if task.images and task.images != task.files["train"].parent:
            entry["images"] = placed(task.images, root)
        lines.append(f"  - {yaml_edit.written(entry | {'scorer': task.scorer})}")
    return "\n".join(lines)


def placed(path: Path, root: str) -> str:
    """Relative to the folder that the study's paths start from, where it lies below that."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def commented(text: str, indent: str = "") -> list[str]:
    lead = f"{indent}# "
    how = {"initial_indent": lead, "subsequent_indent": lead, "break_on_hyphens": False}
    return textwrap.wrap(text, WIDTH, break_long_words=False, **how)


def longest_answer(answers: list[str], model: Mapping[str, Any]) -> int:
    """Tokens that the longest of these answers needs, its end included; two where there are none.

    By the model's own tokenizer where its folder is here, else three bytes are taken for a token.
    """
    if not answers:
        return 2
    folder = Path(plugins.module("models", "embedded").FOLDER)
    if model["name"] != "embedded":
        folder = Path(model["path"])
    if (file := folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer  # it comes with transformers, and is a fraction of it

        tokenizer = Tokenizer.from_file(str(file))
        return 1 + max(len(tokenizer.encode(a, add_special_tokens=False).ids) for a in answers)
    return 1 + max(ceil(len(a.encode()) / 3) for a in answers)
