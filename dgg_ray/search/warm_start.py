"""Warm starts: what finished studies tell a new one.

    add_warm_starts        fill `StudyData.warm_starts` from the results folders in `search.warm_start_from`
    restore_warm_starts    keep that list whenever the study is continued: its results folder holds it
    changed_task_faults    find tasks that kept their names and hold other examples

A setting's values are passed on where they are values of the same tasks. A study that goes on from an older
one, with the same blocks and more tasks behind them, has other values, and the same stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dgg_ray.config import registry, saved_study, study_changes
from dgg_ray.config.sections import STRATEGY_NAME, Search
from dgg_ray.config.study import Setting, Study, WarmStart
from dgg_ray.core import plugins
from dgg_ray.core.errors import DggError, Fault, StudyError
from dgg_ray.core.interfaces import SPLITS
from dgg_ray.core.stage import TaskData
from dgg_ray.search.base import SearchMethod
from dgg_ray.search.comparison import make_search
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.search.space import contains, parameter_paths, search_space
from dgg_ray.storage.store_view import view_of


def add_warm_starts(study: Study) -> tuple[Study, list[Fault]]:
    """Add the settings that the folders in `search.warm_start_from` know, the best of each folder first."""
    search = study.search
    assert search is not None
    warm, notes, faults = list(study.data.warm_starts), list(study.data.warnings), []
    for i, folder in enumerate(search.warm_start_from):
        at = f"search.warm_start_from[{i}]"
        try:
            old = saved_study.require_saved_study(folder)
        except DggError as error:
            faults.append(Fault(at, f"must be the results folder of a finished study: {error}"))
            continue
        faults += changed_task_faults(study, old, folder)
        searched = finished_search(old, folder)
        if searched is None:
            faults.append(
                Fault(at, "needs a study that has evaluated a setting; this one has none", str(folder))
            )
        elif searched.search.objective != search.objective:
            theirs, ours = (", ".join(s.objective) for s in (searched.search, search))
            rule = f"must have searched for {ours}, as this study does; it searched for {theirs}"
            faults.append(Fault(at, rule, str(folder)))
        else:
            found = usable_settings(study, search, old, searched)
            had, usable = (
                parameter_paths(old, searched.search),
                {path for one in found for path in one.setting},
            )
            said = f"{folder} searched {describe_paths(had, old)}; usable here: "
            said += describe_paths(usable, old) or "nothing"
            if not found:
                faults.append(Fault(at, f"must know values that are searched here; {said}"))
            elif usable < set(had):
                notes.append(f"{at}: {said}")
            warm += found
    data = replace(study.data, warm_starts=tuple(warm), warnings=tuple(notes))
    return replace(study, data=data), faults


def finished_search(old: Study, folder: Path) -> SearchMethod | None:
    """The search of the study in a results folder; None where no setting was evaluated."""
    if old.search is None:
        return None
    view = view_of(old.store(folder))
    old = registry.with_decisions(old, view)
    search = EvidenceReader(old, view).fast_forward_past_failures(make_search(old))
    return search if search.evaluated() else None


def usable_settings(study: Study, search: Search, old: Study, searched: SearchMethod) -> list[WarmStart]:
    """The older study's settings as far as this one can use them, the best first, each once."""
    values = searched.evaluated()
    # Tasks whose values need not be known: new ones, and one that is first in every order.
    free = {*study.task_names} - {
        name for order in study.all_orders for name in order[1 : len(old.task_names)]
    }
    same = scored_tasks(study) == scored_tasks(old) and search.constraints == searched.search.constraints
    found: dict[str, WarmStart] = {}
    for number in searched.ranking():
        proposed = searched.proposed[number].setting
        strategy = proposed.get(STRATEGY_NAME, plugins.plugin_name(old.strategy))
        if STRATEGY_NAME in proposed and strategy not in study.strategy_names:
            continue  # its values are those of a strategy that this study does not have
        whole = {path: v for path, v in proposed.items() if path != STRATEGY_NAME}
        if STRATEGY_NAME in search.space:
            whole[STRATEGY_NAME] = strategy
        here = search_space(study, search, strategy)
        setting = {path: v for path, v in whole.items() if path in here and contains(here[path], v)}
        objectives = values[number].objective if same and not any(values[number].excess) else ()
        all_there = len(setting) == len(whole) and all(
            p.rpartition(".")[2] in free for p in here.keys() - setting
        )
        depth = shared_depth(study, old, setting) if all_there else 0
        if setting:
            found.setdefault(repr(setting), WarmStart(setting, objectives, depth))
    return list(found.values())


def shared_depth(study: Study, old: Study, setting: Setting) -> int:
    """The older study's number of tasks, if each run here, which has more, begins as one there; else 0."""
    depth = len(old.task_names)
    if depth >= len(study.task_names) or study.strategy.simultaneous or old.strategy.simultaneous:
        return 0
    there = {run.stages[-1].key for run in old.at(setting).runs}
    return depth if all(run.stages[depth - 1].key in there for run in study.at(setting).runs) else 0


def scored_tasks(study: Study) -> dict[str, TaskData]:
    """The tasks whose scores decide what the search finds: all but those only evaluated after it."""
    return {name: study.data.tasks[name] for name in (*study.task_names, *study.evaluated_outside)}


def describe_paths(paths: Iterable[str], old: Study) -> str:
    """Name the settings, per-task ones once: `strategy.alpha for digits, words`."""
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        head, _, last = path.rpartition(".")
        found.setdefault(head if last in old.task_names else path, []).append(last)
    each = {
        path: f" for {', '.join(last)}" if last[0] in old.task_names else "" for path, last in found.items()
    }
    return " and ".join(f"{path}{names}" for path, names in each.items())


def restore_warm_starts(study: Study, out: Path) -> Study:
    """The study with the warm starts that it was begun with, however the older studies have changed since.

    Raises StudyError where the folder is another study's, or where a task of it holds other examples now.
    """
    if study.search and out.absolute() in study.search.warm_start_from:
        rule = "must be folders of other studies, and this one is run into it; give it another --out"
        raise StudyError([Fault("search.warm_start_from", rule, str(out))], study.name)
    study_changes.refuse_folder_of_another(study, out)
    before = study_changes.previous_study(out)
    if before is None:
        return study
    if faults := changed_task_faults(study, before, out):
        raise StudyError(faults, study.name)
    if warm_start_inputs(before) != warm_start_inputs(study):
        return study
    return replace(study, data=replace(study.data, warm_starts=before.data.warm_starts))


def warm_start_inputs(study: Study) -> tuple[Any, ...]:
    """Everything that decides what can be used of older studies."""
    s, here = study.search, (study.id, study.blocks, scored_tasks(study))
    if s is None:
        return here
    code = [study.source_hash("metrics", name) for name in s.objective]
    return (s.warm_start_from, s.space, s.objective, s.constraints, code, *here)


def changed_task_faults(study: Study, old: Study, out: Path) -> list[Fault]:
    """Find tasks that hold other examples than when the older study was run."""
    faults = []
    for i, name in enumerate(study.readers):
        now, then = study.data.tasks[name], old.data.tasks.get(name, study.data.tasks[name])
        trained = name not in (*study.evaluate_only, *old.evaluate_only)
        if splits := [
            split
            for split in (SPLITS if trained else SPLITS[1:])
            if now.digests[split] != then.digests[split]
        ]:
            has = "has" if len(splits) == 1 else "have"
            found = [describe_split(study, name, split, then.sizes[split]) for split in splits]
            found += describe_edits(study, old, name)
            rule = f"{name}: {' and '.join(splits)} {has} other content than when {out} was run "
            rule += f"({'; '.join(found)}); other examples need another name, or another folder"
            faults.append(Fault(f"tasks[{i}]", rule))
    return faults


def describe_split(study: Study, name: str, split: str, then: int) -> str:
    """Describe a split: its files as the study names them, and how many examples it holds and held.

    One digest is kept for a split with its images, so which file changed is not known.
    """
    paths = {path: value for path, value in task_settings(study, name).items() if isinstance(value, Path)}
    own = split if split in paths else "train"  # of which validation may be a share
    files = [str(value) for path, value in paths.items() if path == own or path not in SPLITS]
    now = study.data.tasks[name].sizes[split]
    count = f"{split} of {now} examples, {'as many' if now == then else then} then"
    return f"{count}: {', '.join(files)}" if files else count


def describe_edits(study: Study, old: Study, name: str) -> list[str]:
    """Describe how the two files differ about a task, or about the folder that its paths start from."""
    now, then = task_settings(study, name), task_settings(old, name)
    found = [
        f"{path} is {now.get(path)}, was {then.get(path)}"
        for path in now | then
        if now.get(path) != then.get(path)
    ]
    rooted = any(isinstance(value, Path) and not value.is_absolute() for value in now.values())
    return found + [f"below {study.file.folder}, was {old.file.folder}"] * (
        rooted and study.file.folder != old.file.folder
    )


def task_settings(study: Study, name: str) -> dict[str, Any]:
    """A task's settings, with paths as its file writes them."""
    reader: Any = study.readers[name]
    entry = next(entry for entry in study.file.content["tasks"] if entry["name"] == name)
    found = {f.name: getattr(reader, f.name) for f in fields(reader)}
    found = {k: Path(entry.get(k, v)) if isinstance(v, Path) else v for k, v in found.items()}
    return {"reader": entry["reader"], **found}
