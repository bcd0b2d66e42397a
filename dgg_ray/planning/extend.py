"""A new dataset has come: a study file with one more task, under which every finished stage still counts.

The new task is learned last in every order. So each run begins with the runs that there are, and only
what follows them is learned. The file's own text stays as it is, comments and all; what changes is `name`,
`tasks`, `orders`, `protocol.held_out`, and where the old results lie (`search.warm_start_from`, `output.store`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgg_ray.config import loader, yaml_edit
from dgg_ray.config.sections import FROM_SEARCH
from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import Fault, StudyError, nearest

SPLITS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
ENDINGS = (".json", ".jsonl")
OWN = ("name", "train", "validation", "test", "references", "images")  # of one task, not of all
Edit = tuple[tuple[str | int, ...], Any]  # a path in the file, its new value


@dataclass(frozen=True)
class Extended:
    """The new file, and what was done to it, in words."""

    file: Path
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*self.notes, f"next: dgg-ray run {self.file}"])


def extend(
    file: Path,
    tasks: Mapping[str, str],
    data: Path | None = None,
    reader: str = "llava",
    results: Path | None = None,
    name: str | None = None,
    new: Path | None = None,
) -> Extended:
    """Write a study file with these tasks behind those of `file`; StudyError holds every fault.

    tasks: name → a folder with train and test files, a train file beside its test file, or the name of
        a reader that needs no files, such as `embedded`.
    results: folder of the old study's results; None is out/NAME, if there is one.
    name: of the new study; None is the old one's and the tasks'.
    new: the file to write; None is beside the old one, named after the tasks.
    """
    from dgg_ray.search import (
        warm_start,  # here: Optuna comes with it, which a misspelt command does not wait for
    )

    study = loader.load(file, data, further=warm_start.warmed)
    suffix = "-".join(tasks)
    new = new or file.with_name(f"{file.stem}-{suffix}{file.suffix}")
    name = name or f"{study.name}-{suffix}"
    faults = [Fault("--out-file", "must be a new file", repr(str(new)))] if new.exists() else []
    if name == study.name:
        faults.append(Fault("--name", "must differ from the old study's, whose results stay", repr(name)))
    entries = [entry(study, task, place, reader, faults) for task, place in tasks.items()]
    named, results = results, results or Path("out") / study.name
    old = loader.kept(results)
    if named and old is None:
        faults.append(Fault("--from", "must be the results folder of a study", repr(str(results))))
    faults += warm_start.changed(study, old, results) if old else []
    judged = old is not None and warm_start.judged(old, results) is not None
    if faults:
        raise StudyError(faults, str(file))
    edits: list[Edit] = [(("name",), name)]
    notes = [f"{new}: {', '.join(study.names)}, and then {', '.join(tasks)}"]
    for at, made in enumerate(entries, start=len(study.names)):
        edits.append((("tasks", at), made))
        notes.append(f"  tasks: {yaml_edit.written(made)}")
    alpha = getattr(study.strategy, "alpha", None)
    if isinstance(alpha, Mapping) and not (study.search and "strategy.alpha" in study.search.space):
        notes.append(f"  strategy.alpha: leaves out {', '.join(tasks)}, learned with α = 0; name a value")
    for more, said in (orders(study, list(tasks)), (kept(study, old, results, judged))):
        edits += more
        notes += said
    notes += anew(study, judged) if old else []
    write(study, file, new, edits, data)
    return Extended(new, tuple(notes))


# -- what changes ----------------------------------------------------------------------------------


def entry(study: Study, name: str, place: str, reader: str, faults: list[Fault]) -> dict[str, Any]:
    """The task as an entry of the file, with the settings that all tasks of its reader share."""
    at, legal = f"--task {name}", plugins.names("readers")
    if name in study.names:
        faults.append(Fault(at, "the study has a task of this name; a changed one needs another name"))
    files = place not in legal
    if reader not in legal:
        faults.append(
            Fault("--reader", f"must be one of {', '.join(legal)}", repr(reader), nearest(reader, legal))
        )
        return {}
    made = {"name": name, "reader": reader if files else place}
    if files:
        made |= found_files(study, at, place, faults)
    alike = [e for e in study.raw["tasks"] if e["reader"] == made["reader"]]
    shared = {k: v for k, v in (alike[0] if alike else {}).items() if all(e.get(k) == v for e in alike)}
    if files and "images" not in made and "images" in shared:
        made["images"] = shared["images"]
    own = OWN if files else OWN[:1]
    return made | {k: v for k, v in shared.items() if k not in own}


def found_files(study: Study, at: str, place: str, faults: list[Fault]) -> dict[str, str]:
    """Split → file, and the folder of images where there is one beside them; as the study writes paths."""
    root = Path(study.root)
    path = next((p for p in (root / place, Path(place).absolute()) if p.exists()), None)
    if path is None:
        near = nearest(place, plugins.names("readers"))
        faults.append(Fault(at, "no such folder or file", repr(place), near))
        return {}
    folder, first = (path, "") if path.is_dir() else (path.parent, path.name)
    found: dict[str, str] = {}
    for split, names in SPLITS.items():
        wanted = [name + ending for name in names for ending in ENDINGS]
        if first:  # charts_train.json has charts_test.json beside it
            wanted = [first if split == "train" else first.replace("train", name) for name in names]
        there = next((n for n in wanted if (folder / n).is_file() and (split == "train" or n != first)), None)
        if there:
            found[split] = written(folder / there, root)
        elif split != "validation":
            near = nearest(wanted[0], [p.name for p in folder.iterdir()])
            faults.append(Fault(at, f"{folder} must hold {' or '.join(wanted)}", near=near))
    if (folder / "images").is_dir():
        found["images"] = written(folder / "images", root)
    return found


def written(path: Path, root: Path) -> str:
    """Relative to the study's data folder where it lies below it."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def orders(study: Study, tasks: list[str]) -> tuple[list[Edit], list[str]]:
    """The old orders, of the search and of the comparison, each with the new tasks at its end."""
    o, held, many = study.orders, study.protocol.held_out, len(study.all_orders)
    redrawn = f"another draw for {len(study.names) + len(tasks)} tasks would share no stages"
    edits: list[Edit] = []
    if o.design == "given" and not o.given:
        notes = ["  orders: the file's own, the new task last"]
    elif o.design == "given":
        above = ("orders",) if isinstance(study.raw["orders"], list) else ("orders", "given")
        edits += lengthened(above, o.given, tasks)
        notes = [f"  orders: the {many} given, the new task last"]
    else:
        edits.append((("orders",), [[*order, *tasks] for order in study.all_orders]))
        notes = [f"  orders: the {many} of {o.design!r} as a list, the new task last in each: {redrawn}"]
    if held and isinstance(held, int):
        fresh = [[*order, *tasks] for order, _ in study.final_blocks]
        edits.append((("protocol", "held_out"), fresh))
        notes.append(f"  protocol.held_out: the {held} as a list, the new task last in each: {redrawn}")
    elif not isinstance(held, int):
        edits += lengthened(("protocol", "held_out"), held, tasks)
        notes.append(f"  protocol.held_out: the {len(held)} given, the new task last")
    return edits, notes


def lengthened(at: tuple[str, ...], given: Sequence[Sequence[str]], tasks: list[str]) -> list[Edit]:
    """The tasks at the end of each of the orders that stand in the file."""
    return [((*at, i, len(g) + k), task) for i, g in enumerate(given) for k, task in enumerate(tasks)]


def anew(study: Study, judged: bool) -> list[str]:
    """What learns the old tasks again although their stages are there, in words."""
    plain = [
        baseline
        for baseline in study.protocol.baselines
        if isinstance(baseline, str) and baseline not in FROM_SEARCH
    ]
    own = plugins.name_of(study.strategy)
    notes = [
        f"  learned anew: {name}, which learns all tasks at once"
        for name in dict.fromkeys([own, *plain])
        if plugins.find("strategies", name).simultaneous
    ]
    if study.search and not judged:
        notes.append("  learned anew: what the search asks for; it has judged no setting to go on from")
    elif study.search:
        rule = "a winner or baseline whose values for the old tasks were not compared before"
        notes.append(f"  learned anew: on the blocks of the comparison, {rule}")
    return notes


def kept(study: Study, old: Study | None, results: Path, judged: bool) -> tuple[list[Edit], list[str]]:
    """Where the old results lie; judged: whether they hold a setting to begin with."""
    edits: list[Edit] = []
    if old is None:
        said = f"{results} holds no study: all stages are learned (--from names another folder)"
        return edits, [f"  results: {said}"]
    notes = []
    if study.output.store is None:
        store = str(old.output.store or results / "stages")
        value = store if "output" in study.raw else {"store": store}
        edits.append((("output", "store") if "output" in study.raw else ("output",), value))
        notes.append(f"  output.store: {store}, where the old stages are")
    if study.search and study.search.method != "grid" and judged:
        edits.append((("search", "warm_start_from"), [str(results)]))
        notes.append(f"  search.warm_start_from: {results}, whose settings are tried with the new task")
    return edits, notes


# -- writing ---------------------------------------------------------------------------------------


def write(study: Study, file: Path, new: Path, edits: list[Edit], data: Path | None) -> None:
    """Write the changed text, checked: it says what the old one says and the edits, and is a study."""
    from dgg_ray.search import warm_start

    text, wanted = file.read_text(encoding="utf-8"), copy.deepcopy(dict(study.raw))
    try:
        for path, value in edits:
            text = yaml_edit.put(text, path, value)
            above: Any = wanted
            *steps, last = path
            for step in steps:
                above = above[step]
            if isinstance(above, list):
                above.append(value)
            else:
                above[last] = value
    except KeyError as error:
        raise unfit(file, edits) from error
    new.write_text(text, encoding="utf-8")
    try:
        try:
            said = loader.parse(new)[0]
        except StudyError as error:
            raise unfit(file, edits) from error
        if said != wanted:
            raise unfit(file, edits)
        loader.load(new, data, further=warm_start.warmed)
    except BaseException:
        new.unlink()
        raise


def unfit(file: Path, edits: list[Edit]) -> StudyError:
    """The file is written in a way that cannot be changed in place."""
    places = "; ".join(f"{'.'.join(map(str, path))}: {yaml_edit.written(value)}" for path, value in edits)
    rule = "is written in a way that cannot be changed in place (anchors?); copy it and write there"
    return StudyError([Fault("study", f"{rule} {places}")], str(file))
