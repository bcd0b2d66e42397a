"""YAML → Study, with every fault at once; and back from what a run kept.

How YAML is read stands in yaml_reader.py. Faults carry the line and the dotted path in the file, the rule,
the value found and the nearest legal name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from dgg_ray.config import cautions, mappings, task_similarity, yaml_reader
from dgg_ray.config.parsing import BROKEN, checked, show
from dgg_ray.config.sections import Budget, Orders, Output, OwnSeeds, Protocol, Search, Workers
from dgg_ray.config.simulation import Law
from dgg_ray.config.study import Known, Study
from dgg_ray.config.validation import held_out_rules, rules, split_rules, task_rules
from dgg_ray.core import plugins
from dgg_ray.core.errors import Fault, ResultsError, StudyError, nearest
from dgg_ray.core.interfaces import SPLITS, Adapter, Model, Strategy, Training
from dgg_ray.core.stage import Data
from dgg_ray.readers._reading import read
from dgg_ray.storage import fetching

Step = Callable[[Study], tuple[Study, list[Fault]]]  # the study with something filled in, and what is wrong
KEPT, PREVIOUS = "study.json", "study.previous.json"
SECTIONS: dict[str, type] = {
    "adapter": Adapter,
    "training": Training,
    "orders": Orders,
    "search": Search,
    "protocol": Protocol,
    "workers": Workers,
    "output": Output,
    "budget": Budget,
    "simulation": Law,
}
PLUGGED = {"model": "models", "strategy": "strategies"}
KEYS = {  # of a study file, each with what it is
    "name": "The study's name, which its folder of results has too.",
    "question": "What the study is to answer, in your words; its report begins with it.",
    "model": "The vision-language model that is tuned, by name and settings.",
    "tasks": "The datasets to learn one after another, at least two, each with a name and a reader.",
    "strategy": "The continual-learning method: what is done against forgetting, by name and settings.",
    "adapter": "The LoRA adapter that is trained; the base model stays as it is.",
    "training": "How each task is trained.",
    "orders": "The orders in which the tasks are learned: a list of orders, or a design that makes them.",
    "seeds": (
        "The seeds of the search's runs: a list, with every one of which each order is learned; `per_order`, "
        "which gives each order a seed of its own; or `{per_order: 3}`, which gives it three."
    ),
    "search": "Which settings are searched and how; without it the study runs its one setting.",
    "protocol": "What is evaluated, and what the recommended setting is compared with.",
    "workers": "The processes that train, and what each of them gets.",
    "output": "Where results go.",
    "budget": "The most that the study may spend; no stage starts that may not end within it.",
    "simulation": "The law that a simulated learner follows, for `workers.engine: simulated`.",
}
REQUIRED = ("name", "model", "tasks", "strategy")
PLAIN: dict[str, Any] = {"name": str, "question": str, "seeds": tuple[int, ...]}


# -- reading ---------------------------------------------------------------------------------------


def load(
    path: Path, data: str | Path | None = None, store: str | None = None, further: Step | None = None
) -> Study:
    """The study in a file; see `face.load_study`. further: fills in what `search.warm_start_from` names."""
    raw, lines, faults = parse(path, store)
    plugins.reach(home := str(path.absolute().parent))
    root = data or os.environ.get("DGG_RAY_DATA") or path.parent
    return replace(completed(raw, lines, faults, str(path), root, further), home=home)


def from_dict(
    given: Any, data: str | Path | None = None, store: str | None = None, further: Step | None = None
) -> Study:
    """The study that a mapping describes; see `face.load_study`."""
    raw, faults = placed(mappings.raw_of(given), store)
    root = data or os.environ.get("DGG_RAY_DATA") or "."
    study = completed(raw, yaml_reader.Lines(), faults, "study", root, further)
    if isinstance(given, Mapping) and (faults := list(other_classes(given.get("strategy"), study.strategy))):
        raise StudyError(faults, "study")
    return study


def other_classes(given: Any, read: Any) -> Iterator[Fault]:
    """A fault where a strategy that was given as an object is not what its settings are read as."""
    if not isinstance(given, Strategy):
        return
    if type(given) is not type(read):
        rule = "must be of the class that its module had when this process first read it; start Python anew"
        yield Fault("strategy", rule, plugins.name_of(given))
        return
    for f in fields(given):
        mine, other = getattr(given, f.name), getattr(read, f.name)
        if is_dataclass(mine) and type(mine) is not type(other):
            rule = (
                f"is read as {type(other).__name__}: classes that one setting may have must differ in fields"
            )
            yield Fault(f"strategy.{f.name}", rule, type(mine).__name__)


def completed(
    raw: Any,
    lines: yaml_reader.Lines,
    faults: list[Fault],
    source: str,
    root: str | Path,
    further: Step | None = None,
) -> Study:
    """The study with its data read and checked; StudyError names every fault with its line, if it has one."""
    study, found = build(raw, fetching.full(root)) if isinstance(raw, Mapping) else (None, [])
    faults += found
    if study is not None:
        study, found = read_data(study, {re.split(r"[.[]", fault.path)[0] for fault in faults})
        faults += found
    if study is not None and not faults and further and study.search and study.search.warm_start_from:
        study, faults = further(study)
    if faults or study is None:
        raise StudyError(list(yaml_reader.with_lines(faults, lines)), source)
    return study


def parse(path: Path, store: str | None = None) -> tuple[Any, yaml_reader.Lines, list[Fault]]:
    """(content, line of each dotted path, faults) of a YAML file; `store` takes `output.store`'s place."""
    try:
        text = decoded(path.read_bytes())
        raw, lines, faults = yaml_reader.read(text)
    except FileNotFoundError:
        near = nearest(
            path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        )
        raise StudyError([Fault("study", "no such file", repr(str(path)), near)], str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError([Fault("study", f"must be a readable text file: {error}")], str(path)) from None
    except yaml_reader.Unreadable as error:
        raise StudyError([error.fault], str(path)) from None
    raw, found = placed(raw, store)
    return raw, lines, faults + found


def placed(raw: Any, store: str | None) -> tuple[Any, list[Fault]]:
    """The settings with `store` in `output.store`'s place; a fault where they are no mapping."""
    if not isinstance(raw, Mapping):
        found = "an empty file" if raw is None else show(raw)
        return raw, [Fault("study", "must be a mapping of settings", found)]
    if store and isinstance(output := raw.get("output") or {}, Mapping):
        raw = {**raw, "output": {**output, "store": store}}
    return raw, []


def decoded(content: bytes) -> str:
    """UTF-8 whatever the machine's locale, or UTF-16 where a mark at its beginning says so."""
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return content.decode("utf-16" if wide else "utf-8-sig")


# -- building --------------------------------------------------------------------------------------


def build(raw: Mapping[str, Any], root: str, files: bool = True) -> tuple[Study | None, list[Fault]]:
    """The study that a mapping describes, data unread; without `files` the model's are not looked at.

    Where a section is broken its default stands in, so that the other sections' faults are found
    too; None where there are no tasks to go on with.
    """
    faults = [Fault(str(k), "no such setting", near=nearest(str(k), KEYS)) for k in raw if k not in KEYS]
    faults += [Fault(key, "is required") for key in REQUIRED if raw.get(key) is None]
    parts: dict[str, Any] = {}
    for key, kind in PLUGGED.items():
        if raw.get(key) is not None:
            parts[key] = plugged(kind, raw[key], key, root, faults)
    for key, cls in SECTIONS.items():
        if raw.get(key) is not None:
            found: list[Fault] = []
            parts[key] = checked(cls, normal(key, raw[key]), key, found)
            given = key == "orders" and isinstance(raw[key], list)  # a short form has a shorter path
            faults += [replace(f, path=f.path.replace("orders.given", key, 1)) if given else f for f in found]
    for key, kind in PLAIN.items():
        if raw.get(key) is not None and not (key == "seeds" and isinstance(raw[key], str | Mapping)):
            parts[key] = checked(kind, raw[key], key, faults)
    if isinstance(raw.get("seeds"), str | Mapping):
        parts |= own_seeds(raw["seeds"], faults)
    if raw.get("tasks") is not None:
        parts["readers"] = readers(raw["tasks"], root, faults)
    broken = {key for key in (*KEYS, "readers") if parts.get(key) is BROKEN}
    broken |= {key for key in REQUIRED if raw.get(key) is None}
    whole = {key: part for key, part in parts.items() if part is not BROKEN}
    if "readers" not in whole:
        return None, faults
    if len(whole["readers"]) < max(2, len(raw["tasks"])):
        broken.add("readers")  # a task is missing, has no name, or one that another has
    study = Study(**{"name": "", "model": NoModel(), "strategy": Strategy(), **whole}, raw=raw, root=root)
    fetching.within(study.workers.cache_gb)
    if files and "workers" not in broken and study.workers.engine != "simulated":
        for setting, rule, value in study.model.faults():
            faults.append(Fault(f"model.{setting}", rule, value))
    faults += [fault for fault in rules(study, broken, files) if fault.path not in {f.path for f in faults}]
    return study, faults


@dataclass(frozen=True)
class NoModel(Model):
    """Stands in for a model section with faults."""

    def load(self):
        raise StudyError([Fault("model", "is required")])

    def fingerprint(self) -> str:
        return ""


def own_seeds(raw: str | Mapping[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """`seeds: per_order` or `{per_order: 3}`: the study's `seeds` and `own_seeds`."""
    if isinstance(raw, str) and raw != "per_order":
        rule = "must be a list of whole numbers, `per_order`, or `{per_order: how many}`"
        faults.append(Fault("seeds", rule, show(raw), nearest(raw, ["per_order"])))
        return {"seeds": BROKEN}
    found = checked(OwnSeeds, {} if isinstance(raw, str) else raw, "seeds", faults)
    if found is BROKEN:
        return {"seeds": BROKEN}
    return {"seeds": tuple(range(found.per_order)), "own_seeds": True}


def normal(key: str, raw: Any) -> Any:
    """Short forms in full: a list of orders, one objective, a list of values to search."""
    if key == "orders" and isinstance(raw, list):
        return {"design": "given", "given": raw}
    if key == "output" and isinstance(raw, Mapping) and isinstance(raw.get("store"), str):
        return {**raw, "store": place(raw["store"])}
    if key != "search" or not isinstance(raw, Mapping):
        return raw
    raw = dict(raw)
    for name in ("objective", "constraints", "warm_start_from"):
        if isinstance(raw.get(name), str):
            raw[name] = [raw[name]]
    if isinstance(raw.get("warm_start_from"), list):
        raw["warm_start_from"] = [folder(place) for place in raw["warm_start_from"]]
    if isinstance(raw.get("space"), Mapping):
        raw["space"] = {path: parameter(value) for path, value in raw["space"].items()}
    return raw


def place(raw: str) -> str:
    """Of a store: a URL as it is, a folder as `folder` says; `file://` is a folder."""
    return raw if "://" in raw and not raw.startswith("file://") else folder(raw.removeprefix("file://"))


def folder(raw: Any) -> Any:
    """A folder of results: a relative one starts where the study is run, as `--out` does."""
    if not isinstance(raw, str) or (home := os.path.expanduser(raw)).startswith("~"):
        return raw  # a rule says that there is no such user
    return str(Path(home).absolute())


def parameter(raw: Any) -> Any:
    if isinstance(raw, Mapping) and "per_task" in raw and not isinstance(raw["per_task"], bool):
        inner = parameter(raw["per_task"])
        return {**inner, "per_task": True} if isinstance(inner, Mapping) and len(raw) == 1 else raw
    return {"values": raw} if isinstance(raw, list) else raw


def plugged(kind: str, raw: Any, at: str, root: str, faults: list[Fault], key: str = "name") -> Any:
    """A plug-in with its settings: `{name: …, setting: …}`, or its bare name."""
    raw = {key: raw} if isinstance(raw, str) else raw
    if not isinstance(raw, Mapping):
        faults.append(Fault(at, "must be a mapping with a name", show(raw)))
        return BROKEN
    if key not in raw:
        faults.append(Fault(f"{at}.{key}", f"is required: one of {', '.join(plugins.names(kind))}"))
        return BROKEN
    if not isinstance(raw[key], str):
        rule = f"must be text, one of {', '.join(plugins.names(kind))}"
        faults.append(Fault(f"{at}.{key}", rule, show(raw[key])))
        return BROKEN
    try:
        cls = plugins.find(kind, raw[key])
    except StudyError as error:
        faults += [replace(fault, path=f"{at}.{key}") for fault in error.faults]
        return BROKEN
    plugin = checked(cls, {k: v for k, v in raw.items() if k != key}, at, faults)
    return plugin if plugin is BROKEN else fetching.rooted(plugin, root)


def readers(raw: Any, root: str, faults: list[Fault]) -> Any:
    """Task name → its reader."""
    if not isinstance(raw, list):
        faults.append(Fault("tasks", "must be a list of tasks", show(raw)))
        return BROKEN
    found: dict[str, Any] = {}
    for i, entry in enumerate(raw):
        at = f"tasks[{i}]"
        if not isinstance(entry, Mapping):
            faults.append(Fault(at, "must be a mapping with a name and a reader", show(entry)))
            continue
        if "name" not in entry:
            faults.append(Fault(f"{at}.name", "is required"))
            continue
        if not isinstance(name := entry["name"], str):
            faults.append(Fault(f"{at}.name", "must be text", show(name)))
            continue
        if name in found:
            faults.append(Fault(f"{at}.name", "two tasks have this name", repr(name)))
        if not re.fullmatch(r"[\w-]+", name):
            faults.append(Fault(f"{at}.name", "must be letters, digits, _ and -", repr(name)))
        settings = {k: v for k, v in entry.items() if k != "name"}
        reader = plugged("readers", settings, at, root, faults, key="reader")
        found.setdefault(name, reader)
    if len(raw) < 2:
        faults.append(Fault("tasks", f"needs at least 2 tasks, has {len(raw)}"))
    return found or BROKEN


# -- data ------------------------------------------------------------------------------------------


def read_data(study: Study, at_fault: Set[str] = frozenset()) -> tuple[Study, list[Fault]]:
    """The study with what its keys need of the tasks' content and of the model.

    at_fault: sections with faults; nothing is said of what rests on them.
    """
    faults: list[Fault] = []
    facts: dict[str, Data] = {}
    notes: list[str] = []
    profiles: list[task_similarity.Profile] = []
    places = [entry.get("name") if isinstance(entry, Mapping) else None for entry in study.raw["tasks"]]
    for name, reader in study.readers.items():
        i = places.index(name)
        if reader is BROKEN:
            continue
        try:
            task = read(reader, name)
        except StudyError as error:
            faults += [replace(f, path=f"tasks[{i}].{f.path}") for f in error.faults]
            continue
        broken = list(task_rules(task))
        faults += [replace(f, path=f"tasks[{i}].{f.path}") for f in broken]
        notes += [f"{name}: {note}" for note in task.warnings]
        notes += [] if broken else cautions.of_task(study, task)
        sizes = {split: len(task.examples[split]) for split in SPLITS}
        facts[name] = Data(name, dict(task.digests), sizes, task.scorer)
        if study.orders.design == "extreme":
            profiles.append(task_similarity.profile(task))
    faults += split_rules(study, facts) if "protocol" not in at_fault else []
    simulated = study.workers.engine == "simulated"
    if faults or isinstance(study.model, NoModel) or (not simulated and study.model.faults()):
        return study, faults
    if not at_fault:
        notes += cautions.of_study(study, facts)
    study = replace(study, tasks=facts, likeness=task_similarity.matrix(profiles), warnings=tuple(notes))
    if not at_fault & {"orders", "tasks"} and (found := list(held_out_rules(study))):
        return study, found
    if not at_fault:  # a part with faults may be no plug-in
        if found := plugins.edited(study.plugged):
            return study, found
        study = replace(study, codes=plugins.codes(study.plugged))
    return study.simulated() if simulated else replace(study, fingerprint=study.fingerprint_here()), faults


# -- keeping ---------------------------------------------------------------------------------------


def keep(study: Study, out: Path) -> None:
    """Write the study as it was checked, so that its results can be read without its data."""
    facts = {name: asdict(data) for name, data in study.tasks.items()}
    content = {"raw": study.raw, "root": study.root, "tasks": facts, "fingerprint": study.fingerprint}
    content["likeness"], content["warm"] = study.likeness, study.warm
    content["codes"], content["home"] = dict(study.codes), study.home
    content["store"] = study.output.store  # a relative one starts where the study was run
    text = json.dumps(content, indent=1, default=str)
    out.mkdir(parents=True, exist_ok=True)
    file, draft = out / KEPT, out / f".{KEPT}"
    if file.exists() and file.read_bytes() != text.encode():
        shutil.copyfile(file, out / PREVIOUS)
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def kept(out: Path) -> Study | None:
    """The study that was run into a folder; None where there is none."""
    try:
        return restored(json.loads((out / KEPT).read_text(encoding="utf-8")), str(out / KEPT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{out / KEPT} is damaged ({error}); run the study again") from error


def restored(content: Mapping[str, Any], source: str) -> Study:
    """The study that `keep` wrote; StudyError where it is none any more, other errors where it is damaged."""
    home, codes = content.get("home", ""), content.get("codes", {})  # studies kept before them have none
    plugins.reach(home)
    study, faults = build(content["raw"], content["root"], files=False)
    if study is None or faults:
        raise StudyError(faults, source)
    facts = {name: Data(**data) for name, data in content["tasks"].items()}
    output = Output(content["store"])
    alike = tuple(map(tuple, content.get("likeness", ())))  # studies kept before the field have none
    warm = tuple(Known(setting, tuple(of), depth) for setting, of, depth in content.get("warm", ()))
    facts_of = {"tasks": facts, "fingerprint": content["fingerprint"], "likeness": alike}
    return replace(study, **facts_of, output=output, warm=warm, codes=codes, home=home)


def the_kept(out: Path) -> Study:
    """The study that was run into a folder; ResultsError where there is none."""
    if (study := kept(out)) is None:
        raise ResultsError(f"{out} holds no study; `dgg-ray run STUDY --out {out}` makes one there")
    return study
