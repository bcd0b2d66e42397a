"""Extend a finished study: write a file with one more task, under which every finished stage still counts.

The new task is trained last in every order. So each run begins with a run that exists already, and only the
new task's stage is trained. The file keeps its text, comments included. These keys change: `name`, `tasks`,
`orders`, `protocol.held_out`, and those that name the old results (`search.warm_start_from`, `output.store`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgg_ray.config import loader, saved_study, yaml_edit, yaml_reader
from dgg_ray.config.sections import name_of
from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import Fault, StudyError, nearest_name
from dgg_ray.core.strategy import task_mappings
from dgg_ray.storage.fetching import path_below

FILE_WORDS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
ENDINGS = (".json", ".jsonl")
TASK_KEYS = (  # of one task, not shared by all
    *("name", "train", "validation", "test", "references", "images", "evaluate_only"),
)
Edit = tuple[tuple[str | int, ...], Any]  # a path in the file, its new value


@dataclass(frozen=True)
class ExtendedStudy:
    """The new study file, and notes on what was changed."""

    file: Path
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*self.notes, f"next: dgg-ray run {self.file}"])


@dataclass(frozen=True)
class OldResults:
    """The results of the study that is extended.

    folder: where they are. study: as it was run; None where the folder holds no study.
    evaluated: number of settings that its search evaluated, from which the new one goes on.
    """

    folder: Path
    study: Study | None
    evaluated: int


def extend(
    file: Path,
    tasks: Mapping[str, str],
    data: Path | None = None,
    reader: str = "llava",
    results: Path | None = None,
    name: str | None = None,
    new: Path | None = None,
) -> ExtendedStudy:
    """Write a study file with these tasks after those of `file`; StudyError holds every fault.

    tasks: name → a folder with train and test files, a train file beside its test file, or the name of a
        reader that needs no files, such as `embedded`.
    results: folder of the old study's results; None is out/NAME, if it exists.
    name: of the new study; None is the old one's with the tasks'.
    new: the file to write; None is beside the old one, named after the tasks.
    """
    from dgg_ray.search import warm_start  # late: a mistyped command does without Optuna

    study = loader.load_file(file, data, further=warm_start.add_warm_starts)
    new = new or file.with_name(f"{file.stem}-{'-'.join(tasks)}{file.suffix}")
    faults = [Fault("--out-file", "must be a new file", repr(str(new)))] if new.exists() else []
    folder = results or Path("out") / study.name
    if results and saved_study.load_saved_study(folder) is None:
        faults.append(Fault("--from", "must be the results folder of a study", repr(str(results))))
    edits, notes, found = plan_extension(study, tasks, reader, folder, name)
    if faults := faults + found:
        raise StudyError(faults, str(file))
    write_extended(study, file, new, edits, data)
    return ExtendedStudy(new, (f"{new}: {', '.join(study.task_names)}, and then {', '.join(tasks)}", *notes))


def extended_text(
    study: Study, text: str, tasks: Mapping[str, str], reader: str, results: Path, name: str | None = None
) -> str:
    """Return the study's text with these tasks after its own; StudyError holds every fault.

    text: from which the study was loaded. results: folder of its results, if there are any.
    """
    edits, _, faults = plan_extension(study, tasks, reader, results, name)
    if faults:
        raise StudyError(faults, study.name)
    return edited(study, text, edits, study.name)


def plan_extension(
    study: Study, tasks: Mapping[str, str], reader: str, results: Path, name: str | None
) -> tuple[list[Edit], list[str], list[Fault]]:
    """Return the edits of the file, notes on them, and the faults of what was asked for.

    results: folder of the old study's results, if there are any. The others are as for `extend`.
    """
    from dgg_ray.search import warm_start

    name = name or f"{study.name}-{'-'.join(tasks)}"
    faults: list[Fault] = []
    if name == study.name:
        rule = "must differ from the old study's name, because the old results stay"
        faults.append(Fault("--name", rule, repr(name)))
    entries = [task_entry(study, task, source, reader, faults) for task, source in tasks.items()]
    old_study = saved_study.load_saved_study(results)
    if old_study:
        faults += warm_start.changed_task_faults(study, old_study, results)
    search = warm_start.finished_search(old_study, results) if old_study else None
    old = OldResults(results, old_study, len(search.evaluated()) if search else 0)
    if faults:
        return [], [], faults
    edits: list[Edit] = [(("name",), name)]
    notes = []
    for index, entry in enumerate(entries, start=len(study.readers)):
        edits.append((("tasks", index), entry))
        notes.append(f"  tasks: {yaml_edit.to_inline(entry)}")
    notes += default_value_notes(study, list(tasks))
    for more_edits, more_notes in (
        extend_orders(study, list(tasks)),
        connect_results(study, old, len(tasks)),
    ):
        edits += more_edits
        notes += more_notes
    if old_study:
        notes += describe_retraining(study, bool(old.evaluated))
    return edits, notes, []


def default_value_notes(study: Study, tasks: Sequence[str]) -> list[str]:
    """Name the settings with a value for each task that have none for these tasks, and are not searched."""
    notes = []
    for setting in task_mappings(study.strategy):
        path = f"strategy.{setting}"
        if not (study.search and path in study.search.space):
            default = f"{name_of(path)} = {study.strategy.per_task[setting]:g}"
            names = ", ".join(tasks)
            notes.append(f"  {path}: has no value for {names}; trained with {default} unless you add one")
    return notes


# -- the new tasks ---------------------------------------------------------------------------------


def task_entry(study: Study, name: str, source: str, reader: str, faults: list[Fault]) -> dict[str, Any]:
    """Return the task's entry for the file, with the settings that all tasks of its reader share.

    source: a folder, a train file, or the name of a reader that needs no files.
    """
    at, readers = f"--task {name}", plugins.all_names("readers")
    if name in study.readers:
        rule = "the study has a task of this name; give a changed task another name"
        faults.append(Fault(at, rule))
    if reader not in readers:
        near = nearest_name(reader, readers)
        faults.append(Fault("--reader", f"must be one of {', '.join(readers)}", repr(reader), near))
        return {}
    has_files = source not in readers
    entry = {"name": name, "reader": reader if has_files else source}
    if has_files:
        entry |= find_task_files(study, at, source, faults)
    trained = [other for other in study.file.content["tasks"] if other["name"] in study.task_names]
    alike = [other for other in trained if other["reader"] == entry["reader"]]
    first = alike[0] if alike else {}
    shared = {key: value for key, value in first.items() if all(e.get(key) == value for e in alike)}
    if has_files and "images" not in entry and "images" in shared:
        entry["images"] = shared["images"]
    own_keys = TASK_KEYS if has_files else ("name", "evaluate_only")
    return entry | {key: value for key, value in shared.items() if key not in own_keys}


def find_task_files(study: Study, at: str, source: str, faults: list[Fault]) -> dict[str, str]:
    """Find the file of each split, and the folder of images beside them; paths as the study writes them.

    source: a folder, or a train file beside the others.
    """
    root = Path(study.file.folder)
    path = next((p for p in (root / source, Path(source).absolute()) if p.exists()), None)
    if path is None:
        near = nearest_name(source, plugins.all_names("readers"))
        faults.append(Fault(at, "no such folder or file", repr(source), near))
        return {}
    folder, train_file = (path, "") if path.is_dir() else (path.parent, path.name)
    files: dict[str, str] = {}
    for split, words in FILE_WORDS.items():
        wanted = [word + ending for word in words for ending in ENDINGS]
        if train_file:  # charts_train.json has charts_test.json beside it
            wanted = [train_file.replace("train", word) for word in words]
            wanted = [train_file] if split == "train" else [file for file in wanted if file != train_file]
        if existing := next((file for file in wanted if (folder / file).is_file()), None):
            files[split] = path_below(folder / existing, root)
        elif split != "validation" and wanted:
            near = nearest_name(wanted[0], [p.name for p in folder.iterdir()])
            faults.append(Fault(at, f"{folder} must hold {' or '.join(wanted)}", near=near))
        elif split != "validation":
            rule = f"must have `train` in its name, so that the {split} file beside it can be found"
            faults.append(Fault(at, rule, repr(train_file)))
    if (folder / "images").is_dir():
        files["images"] = path_below(folder / "images", root)
    return files


# -- orders and results ----------------------------------------------------------------------------


def extend_orders(study: Study, tasks: list[str]) -> tuple[list[Edit], list[str]]:
    """Add the new tasks at the end of each old order, of the search and of the comparison."""
    orders, held_out, count = study.orders, study.protocol.held_out, len(study.all_orders)
    reason = f"other orders of {len(study.task_names) + len(tasks)} tasks would share no stages"
    edits: list[Edit] = []
    if orders.design == "given" and not orders.given:
        notes = ["  orders: the file's own, the new task last"]
    elif orders.design == "given":
        at = ("orders",) if isinstance(study.file.content["orders"], list) else ("orders", "given")
        edits += append_tasks(at, orders.given, tasks)
        notes = [f"  orders: the {count} given, the new task last"]
    else:
        edits.append((("orders",), [[*order, *tasks] for order in study.all_orders]))
        notes = [f"  orders: the {count} of {orders.design!r} as a list, the new task last in each: {reason}"]
    if not isinstance(held_out, int):
        edits += append_tasks(("protocol", "held_out"), held_out, tasks)
        notes.append(f"  protocol.held_out: the {len(held_out)} given, the new task last")
    elif held_out:
        edits.append((("protocol", "held_out"), [[*order, *tasks] for order, _ in study.final_blocks]))
        notes.append(f"  protocol.held_out: the {held_out} as a list, the new task last in each: {reason}")
    return edits, notes


def append_tasks(at: tuple[str, ...], orders: Sequence[Sequence[str]], tasks: list[str]) -> list[Edit]:
    """Append the tasks to each order of the list in the file."""
    return [
        ((*at, i, len(order) + k), task) for i, order in enumerate(orders) for k, task in enumerate(tasks)
    ]


def describe_retraining(study: Study, has_winner: bool) -> list[str]:
    """Describe what trains the old tasks again although their stages are stored."""
    notes = [
        f"  trained again: {name}, which trains all tasks at once"
        for name in dict.fromkeys([*study.strategy_names, *study.baseline_strategies])
        if plugins.find("strategies", name).simultaneous
    ]
    if study.search and not has_winner:
        notes.append(
            "  trained again: the stages of the search, which has evaluated no setting to go on from yet"
        )
    elif study.search:
        what = "a winner or baseline whose values for the old tasks were not compared before"
        notes.append(f"  trained again: on the blocks of the comparison, {what}")
    return notes


def connect_results(study: Study, old: OldResults, new_tasks: int) -> tuple[list[Edit], list[str]]:
    """Name the locations of the old results in the file, and allow the stages of the new tasks."""
    edits: list[Edit] = []
    if old.study is None:
        note = f"{old.folder} holds no study, so all stages are trained (--from names another folder)"
        return edits, [f"  results: {note}"]
    notes = []
    if study.output.store is None:
        store = str(old.study.output.store or old.folder / "stages")
        if "output" in study.file.content:
            edits.append((("output", "store"), store))
        else:
            edits.append((("output",), {"store": store}))
        notes.append(f"  output.store: {store}, which holds the old stages")
    if study.search and study.search.method != "grid" and old.evaluated:
        edits.append((("search", "warm_start_from"), [str(old.folder)]))
        notes.append(f"  search.warm_start_from: {old.folder}, whose settings are tried with the new task")
        if study.search.stages:
            stages = study.search.stages + old.evaluated * len(study.blocks) * new_tasks
            edits.append((("search", "stages"), stages))
            notes.append(
                f"  search.stages: {stages}, enough for the new stages of all {old.evaluated} settings"
            )
    return edits, notes


# -- writing ---------------------------------------------------------------------------------------


def write_extended(study: Study, file: Path, new: Path, edits: list[Edit], data: Path | None) -> None:
    """Write the edited text, after checking that it is a study."""
    from dgg_ray.search import warm_start

    new.write_text(edited(study, file.read_text(encoding="utf-8"), edits, str(file)), encoding="utf-8")
    try:
        loader.load_file(new, data, further=warm_start.add_warm_starts)
    except BaseException:
        new.unlink()
        raise


def edited(study: Study, text: str, edits: list[Edit], place: str) -> str:
    """Return the edited text; StudyError unless its content is the old one with the edits alone.

    place: where the text is, for the error.
    """
    wanted = copy.deepcopy(dict(study.file.content))
    try:
        for path, value in edits:
            text = yaml_edit.set_value(text, path, value)
            set_content(wanted, path, value)
        content = yaml_reader.read_yaml(text)[0]
    except (KeyError, yaml_reader.UnreadableYamlError) as error:
        raise uneditable(place, edits) from error
    store = study.output.store  # it may have been given beside the text
    if loader.with_store(content, store)[0] != loader.with_store(wanted, store)[0]:
        raise uneditable(place, edits)
    return text


def set_content(content: Any, path: tuple[str | int, ...], value: Any) -> None:
    """Set a value of nested mappings, or append it to a nested list."""
    *steps, last = path
    for step in steps:
        content = content[step]
    if isinstance(content, list):
        content.append(value)
    else:
        content[last] = value


def uneditable(place: str, edits: list[Edit]) -> StudyError:
    """Return the error of a file whose text cannot be edited."""
    changes = "; ".join(f"{'.'.join(map(str, path))}: {yaml_edit.to_inline(value)}" for path, value in edits)
    rule = f"cannot be edited as it is written (does it have anchors?); copy it and change {changes}"
    return StudyError([Fault("study", rule)], place)
