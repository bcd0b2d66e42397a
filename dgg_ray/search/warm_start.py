"""What finished studies say to a new one.

    warmed     fill `Study.warm` from the results folders in `search.warm_start_from`
    settled    the same list whenever the study is taken up again: the folder it was run into keeps it
    changed    tasks that are called as they were and hold other examples

A setting's values are passed on where they are values of the same tasks. A study that goes on from an older
one, with the same blocks and more tasks behind them, has other values, and the same stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dgg_ray.config import saved_study, study_changes
from dgg_ray.config.sections import Search
from dgg_ray.config.study import Setting, Study, WarmStart
from dgg_ray.core.errors import DggError, Fault, StudyError
from dgg_ray.core.interfaces import SPLITS
from dgg_ray.search.base import SearchMethod
from dgg_ray.search.comparison import make_search
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.search.space import contains, space
from dgg_ray.storage.store_view import view_of


def warmed(study: Study) -> tuple[Study, list[Fault]]:
    """The study with what the folders in `search.warm_start_from` know, best first, folder by folder."""
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
        faults += changed(study, old, folder)
        searched = judged(old, folder)
        if searched is None:
            faults.append(
                Fault(at, "needs a study that has judged a setting; this one has none", str(folder))
            )
        elif searched.search.objective != search.objective:
            theirs, ours = (", ".join(s.objective) for s in (searched.search, search))
            rule = f"must have searched for {ours}, as this study does; it searched for {theirs}"
            faults.append(Fault(at, rule, str(folder)))
        else:
            found = known(study, search, old, searched)
            had, usable = space(old, searched.search), {path for one in found for path in one.setting}
            said = f"{folder} searched {listing(had, old)}; usable here: {listing(usable, old) or 'nothing'}"
            if not found:
                faults.append(Fault(at, f"must know values that are searched here; {said}"))
            elif usable < set(had):
                notes.append(f"{at}: {said}")
            warm += found
    data = replace(study.data, warm_starts=tuple(warm), warnings=tuple(notes))
    return replace(study, data=data), faults


def judged(old: Study, folder: Path) -> SearchMethod | None:
    """The search of the study in a results folder; None where no setting has been judged."""
    if old.search is None:
        return None
    search = EvidenceReader(old, view_of(old.store(folder))).replay_to_read(make_search(old))
    return search if search.judged() else None


def known(study: Study, search: Search, old: Study, searched: SearchMethod) -> list[WarmStart]:
    """What the older study's settings are here, best first; each once, and none of which nothing is left."""
    here, values = space(study, search), searched.judged()
    # Tasks whose values need not be known: those to come, and one that is first in every order.
    free = {*study.task_names} - {
        name for order in study.all_orders for name in order[1 : len(old.task_names)]
    }
    same = study.data.tasks == old.data.tasks and search.constraints == searched.search.constraints
    found: dict[str, WarmStart] = {}
    for number in searched.ranking():
        whole = searched.proposed[number].setting
        setting = {path: v for path, v in whole.items() if path in here and contains(here[path], v)}
        objectives = values[number].objective if same and not any(values[number].excess) else ()
        all_there = len(setting) == len(whole) and all(
            p.rpartition(".")[2] in free for p in here.keys() - setting
        )
        depth = shared(study, old, setting) if all_there else 0
        if setting:
            found.setdefault(repr(setting), WarmStart(setting, objectives, depth))
    return list(found.values())


def shared(study: Study, old: Study, setting: Setting) -> int:
    """The older study's number of tasks, where each run here, which has more, begins as one there; else 0."""
    depth = len(old.task_names)
    if depth >= len(study.task_names) or study.strategy.simultaneous or old.strategy.simultaneous:
        return 0
    there = {run.stages[-1].key for run in old.at(setting).runs}
    return depth if all(run.stages[depth - 1].key in there for run in study.at(setting).runs) else 0


def listing(paths: Iterable[str], old: Study) -> str:
    """Paths in words, those of one setting for several tasks as one: `strategy.alpha for digits, words`."""
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        head, _, last = path.rpartition(".")
        found.setdefault(head if last in old.task_names else path, []).append(last)
    each = {
        path: f" for {', '.join(last)}" if last[0] in old.task_names else "" for path, last in found.items()
    }
    return " and ".join(f"{path}{names}" for path, names in each.items())


def settled(study: Study, out: Path) -> Study:
    """The study as it was begun in a folder: what it learned of older ones then, whatever they became since.

    StudyError where the folder is another study's, or a task of it holds other examples now.
    """
    if study.search and out.absolute() in study.search.warm_start_from:
        rule = "must be folders of other studies, and this one is run into it; give it another --out"
        raise StudyError([Fault("search.warm_start_from", rule, str(out))], study.name)
    study_changes.refuse_folder_of_another(study, out)
    before = study_changes.previous_study(out)
    if before is None:
        return study
    if faults := changed(study, before, out):
        raise StudyError(faults, study.name)
    if asks(before) != asks(study):
        return study
    return replace(study, data=replace(study.data, warm_starts=before.data.warm_starts))


def asks(study: Study) -> tuple[Any, ...]:
    """All that bears on what can be used of older studies."""
    s, here = study.search, (study.id, study.blocks, study.data.tasks)
    if s is None:
        return here
    code = [study.source_hash("metrics", name) for name in s.objective]
    return (s.warm_start_from, s.space, s.objective, s.constraints, code, *here)


def changed(study: Study, old: Study, out: Path) -> list[Fault]:
    """A fault for each task that holds other examples than when the older study was run."""
    faults = []
    for i, name in enumerate(study.task_names):
        now, then = study.data.tasks[name], old.data.tasks.get(name, study.data.tasks[name])
        if splits := [split for split in SPLITS if now.digests[split] != then.digests[split]]:
            has = "has" if len(splits) == 1 else "have"
            found = [part(study, name, split, then.sizes[split]) for split in splits]
            found += edited(study, old, name)
            rule = f"{name}: {' and '.join(splits)} {has} other content than when {out} was run "
            rule += f"({'; '.join(found)}); other examples need another name, or another folder"
            faults.append(Fault(f"tasks[{i}]", rule))
    return faults


def part(study: Study, name: str, split: str, then: int) -> str:
    """A split's files, as the study names them, and how many examples they held and hold.

    One digest is kept of a split, pictures and all: which of its files has changed is not known.
    """
    paths = {path: value for path, value in settings(study, name).items() if isinstance(value, Path)}
    own = split if split in paths else "train"  # of which validation may be a share
    files = [str(value) for path, value in paths.items() if path == own or path not in SPLITS]
    now = study.data.tasks[name].sizes[split]
    count = f"{split} of {now} examples, {'as many' if now == then else then} then"
    return f"{count}: {', '.join(files)}" if files else count


def edited(study: Study, old: Study, name: str) -> list[str]:
    """What the two files say differently of a task, or of where its paths start."""
    now, then = settings(study, name), settings(old, name)
    found = [
        f"{path} is {now.get(path)}, was {then.get(path)}"
        for path in now | then
        if now.get(path) != then.get(path)
    ]
    rooted = any(isinstance(value, Path) and not value.is_absolute() for value in now.values())
    return found + [f"below {study.file.folder}, was {old.file.folder}"] * (
        rooted and study.file.folder != old.file.folder
    )


def settings(study: Study, name: str) -> dict[str, Any]:
    """A task's settings, paths as its file writes them."""
    reader: Any = study.readers[name]
    entry = next(entry for entry in study.file.content["tasks"] if entry["name"] == name)
    found = {f.name: getattr(reader, f.name) for f in fields(reader)}
    found = {k: Path(entry.get(k, v)) if isinstance(v, Path) else v for k, v in found.items()}
    return {"reader": entry["reader"], **found}
