"""Load a study from YAML or from a mapping, with every fault found at once.

A fault carries the line and the dotted path in the file, the rule, the value found and the nearest legal
name. yaml_reader.py says how YAML is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from dgg_ray.config import data_warnings, study_mapping, task_similarity, yaml_reader
from dgg_ray.config.parsing import BROKEN, check_type, show_value
from dgg_ray.config.sections import (
    Budget,
    Orders,
    Output,
    OwnSeeds,
    Protocol,
    Search,
    Workers,
    baseline_form,
)
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.config.study import Study, StudyData, StudyFile
from dgg_ray.config.validation import held_out_rules, split_rules, task_rules, validate_study
from dgg_ray.core import plugins
from dgg_ray.core.errors import Fault, StudyError, nearest_name
from dgg_ray.core.interfaces import SPLITS, Adapter, Model, Training
from dgg_ray.core.stage import TaskData
from dgg_ray.core.strategy import Strategy
from dgg_ray.readers._task_reading import read_task
from dgg_ray.storage import fetching

Step = Callable[[Study], tuple[Study, list[Fault]]]  # fills something in; returns the study and its faults
SECTIONS: dict[str, type] = {
    "adapter": Adapter,
    "training": Training,
    "orders": Orders,
    "search": Search,
    "protocol": Protocol,
    "workers": Workers,
    "output": Output,
    "budget": Budget,
    "simulation": ResponseModel,
}
PLUGIN_SECTIONS = {"model": "models", "strategy": "strategies"}
KEYS = {  # keys of a study file, each with its description
    "name": "The study's name, also the name of its results folder.",
    "question": "The question that the study answers, in your words; its report begins with it.",
    "model": "The vision-language model that is fine-tuned, by name and settings.",
    "tasks": (
        "The datasets to train one after another, at least two, each with a name and a reader. One with "
        "`evaluate_only: true` is never trained: it is evaluated after each stage, to see what the model "
        "keeps of its other abilities."
    ),
    "strategy": "The continual-learning method, by name and settings.",
    "adapter": "The LoRA adapter that is trained; the base model stays frozen.",
    "training": "How each task is trained.",
    "orders": "The orders in which the tasks are trained: a list of orders, or a design that makes them.",
    "seeds": (
        "The seeds of the search's runs: a list, and each order is trained with each of them; `per_order`, "
        "which gives each order a seed of its own; or `{per_order: 3}`, which gives it three."
    ),
    "search": "What is searched and how; without it the study runs its one setting.",
    "protocol": "What is evaluated, and what the recommended setting is compared with.",
    "workers": "The processes that train, and the hardware of each.",
    "output": "Where results go.",
    "budget": "The most that the study may spend; a stage starts only if it is predicted to end within it.",
    "simulation": "The response model of a simulated learner, for `workers.engine: simulated`.",
}
REQUIRED = ("name", "model", "tasks", "strategy")
PLAIN: dict[str, Any] = {"name": str, "question": str, "seeds": tuple[int, ...]}


# -- reading ---------------------------------------------------------------------------------------


def load_file(
    path: Path, data: str | Path | None = None, store: str | None = None, further: Step | None = None
) -> Study:
    """Load the study in a file; see `api.load_study`. further: fills in the studies to start from."""
    raw, lines, faults = parse_file(path, store)
    home = str(path.absolute().parent)
    plugins.add_search_folders(home)
    folder = data or os.environ.get("DGG_RAY_DATA") or path.parent
    study = complete(raw, lines, faults, str(path), folder, further)
    return replace(study, file=replace(study.file, home=home))


def load_mapping(
    given: Any, data: str | Path | None = None, store: str | None = None, further: Step | None = None
) -> Study:
    """Load the study that a mapping describes; see `api.load_study`."""
    raw, faults = with_store(study_mapping.raw_mapping(given), store)
    folder = data or os.environ.get("DGG_RAY_DATA") or "."
    study = complete(raw, yaml_reader.LineNumbers(), faults, "study", folder, further)
    if isinstance(given, Mapping) and (faults := list(class_faults(given.get("strategy"), study.strategy))):
        raise StudyError(faults, "study")
    return study


def class_faults(given: Any, read: Any) -> Iterator[Fault]:
    """Find where a strategy given as an object differs in class from the one that its settings make."""
    if not isinstance(given, Strategy):
        return
    if type(given) is not type(read):
        rule = "must be of the class that its module had when this process first read it; restart Python"
        yield Fault("strategy", rule, plugins.plugin_name(given))
        return
    for f in fields(given):
        own, other = getattr(given, f.name), getattr(read, f.name)
        if is_dataclass(own) and type(own) is not type(other):
            rule = f"is read as {type(other).__name__}: the classes of a setting must differ in fields"
            yield Fault(f"strategy.{f.name}", rule, type(own).__name__)


def complete(
    raw: Any,
    lines: yaml_reader.LineNumbers,
    faults: list[Fault],
    source: str,
    folder: str | Path,
    further: Step | None = None,
) -> Study:
    """Build the study, read its data and check both; StudyError holds every fault with its line."""
    study, found = build_study(raw, fetching.absolute(folder)) if isinstance(raw, Mapping) else (None, [])
    faults += found
    if study is not None:
        study, found = read_data(study, {re.split(r"[.[]", fault.path)[0] for fault in faults})
        faults += found
    if study is not None and not faults and further and study.search and study.search.warm_start_from:
        study, faults = further(study)
    if faults or study is None:
        raise StudyError(list(yaml_reader.add_lines(faults, lines)), source)
    return study


def parse_file(path: Path, store: str | None = None) -> tuple[Any, yaml_reader.LineNumbers, list[Fault]]:
    """Parse a YAML file: (content, line of each dotted path, faults). store: in place of `output.store`."""
    try:
        text = decode(path.read_bytes())
        raw, lines, faults = yaml_reader.read_yaml(text)
    except FileNotFoundError:
        files = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = nearest_name(path.name, files)
        raise StudyError([Fault("study", "no such file", repr(str(path)), near)], str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError([Fault("study", f"must be a readable text file: {error}")], str(path)) from None
    except yaml_reader.UnreadableYamlError as error:
        raise StudyError([error.fault], str(path)) from None
    raw, found = with_store(raw, store)
    return raw, lines, faults + found


def with_store(raw: Any, store: str | None) -> tuple[Any, list[Fault]]:
    """Put `store` in the place of `output.store`; a fault where the settings are no mapping."""
    if not isinstance(raw, Mapping):
        found = "an empty file" if raw is None else show_value(raw)
        return raw, [Fault("study", "must be a mapping of settings", found)]
    if store and isinstance(output := raw.get("output") or {}, Mapping):
        raw = {**raw, "output": {**output, "store": store}}
    return raw, []


def decode(content: bytes) -> str:
    """Decode UTF-8 whatever the machine's locale, or UTF-16 where a byte order mark says so."""
    utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return content.decode("utf-16" if utf_16 else "utf-8-sig")


# -- building --------------------------------------------------------------------------------------


def build_study(raw: Mapping[str, Any], folder: str, files: bool = True) -> tuple[Study | None, list[Fault]]:
    """Build the study that a mapping describes, without its data; return it with all faults.

    In the place of a broken section its default stands, so that the faults of other sections are found too.
    None where there are no tasks.

    files: whether to look at the files of the model and of the strategy.
    """
    faults = [Fault(str(k), "no such setting", near=nearest_name(str(k), KEYS)) for k in raw if k not in KEYS]
    faults += [Fault(key, "is required") for key in REQUIRED if raw.get(key) is None]
    parts = build_parts({key: value for key, value in raw.items() if value is not None}, folder, faults)
    broken = {key for key in (*KEYS, "readers") if parts.get(key) is BROKEN}
    broken |= {key for key in REQUIRED if raw.get(key) is None}
    intact = {key: part for key, part in parts.items() if part is not BROKEN}
    if "readers" not in intact:
        return None, faults
    if len(intact["readers"]) < max(2, len(raw["tasks"])) or parts.get("evaluate_only") is BROKEN:
        broken.add("readers")  # a task is missing, has no name, or one that another has
    defaults = {"name": "", "model": MissingModel(), "strategy": Strategy()}
    study = Study(**{**defaults, **intact}, file=StudyFile(raw, folder))
    fetching.set_cache_limit(study.workers.cache_gb)
    if files and "workers" not in broken and study.workers.engine != "simulated":
        for part, plugin in (("model", study.model), ("strategy", study.strategy)):
            faults += [Fault(f"{part}.{setting}", rule, value) for setting, rule, value in plugin.faults()]
    known = {fault.path for fault in faults}
    faults += [fault for fault in validate_study(study, broken, files) if fault.path not in known]
    return study, faults


def build_parts(raw: Mapping[str, Any], folder: str, faults: list[Fault]) -> dict[str, Any]:
    """Build the parts of a study from their keys; BROKEN stands for a part with faults, which are added."""
    parts: dict[str, Any] = {}
    for key, kind in PLUGIN_SECTIONS.items():
        if key in raw:
            parts[key] = build_plugin(kind, raw[key], key, folder, faults)
    for key, cls in SECTIONS.items():
        if key in raw:
            found: list[Fault] = []
            parts[key] = check_type(cls, normalize(key, raw[key]), key, found)
            short = key == "orders" and isinstance(raw[key], list)  # a short form has a shorter path
            faults += [replace(f, path=f.path.replace("orders.given", key, 1)) if short else f for f in found]
    own_seeds = isinstance(raw.get("seeds"), str | Mapping)
    for key, kind in PLAIN.items():
        if key in raw and not (key == "seeds" and own_seeds):
            parts[key] = check_type(kind, raw[key], key, faults)
    if own_seeds:
        parts |= read_own_seeds(raw["seeds"], faults)
    if "tasks" in raw:
        parts["readers"] = build_readers(raw["tasks"], folder, faults)
        parts["evaluate_only"] = evaluate_only_names(raw["tasks"], faults)
    return parts


@dataclass(frozen=True)
class MissingModel(Model):
    """Stands in the place of a model section with faults."""

    def load(self):
        raise StudyError([Fault("model", "is required")])

    def fingerprint(self) -> str:
        return ""


def read_own_seeds(raw: str | Mapping[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """Read `seeds: per_order` or `{per_order: 3}` into the study's `seeds` and `own_seeds`."""
    if isinstance(raw, str) and raw != "per_order":
        rule = "must be a list of whole numbers, `per_order`, or `{per_order: NUMBER}`"
        faults.append(Fault("seeds", rule, show_value(raw), nearest_name(raw, ["per_order"])))
        return {"seeds": BROKEN}
    section = check_type(OwnSeeds, {} if isinstance(raw, str) else raw, "seeds", faults)
    if section is BROKEN:
        return {"seeds": BROKEN}
    return {"seeds": tuple(range(section.per_order)), "own_seeds": True}


def normalize(key: str, raw: Any) -> Any:
    """Write short forms in full: a list of orders, a single objective, a list of values to search."""
    if key == "orders" and isinstance(raw, list):
        return {"design": "given", "given": raw}
    if key == "output" and isinstance(raw, Mapping) and isinstance(raw.get("store"), str):
        return {**raw, "store": normalize_store(raw["store"])}
    if key == "protocol" and isinstance(raw, Mapping) and isinstance(raw.get("baselines"), list):
        return {**raw, "baselines": [normalize_baseline(baseline) for baseline in raw["baselines"]]}
    if key != "search" or not isinstance(raw, Mapping):
        return raw
    raw = dict(raw)
    for name in ("objective", "constraints", "warm_start_from"):
        if isinstance(raw.get(name), str):
            raw[name] = [raw[name]]
    if isinstance(raw.get("warm_start_from"), list):
        raw["warm_start_from"] = [normalize_folder(folder) for folder in raw["warm_start_from"]]
    if "space" in raw:
        raw["space"] = normalize_space(raw["space"])
    return raw


def normalize_baseline(raw: Any) -> Any:
    """A tuned baseline with its `search` written in full; any other as it is."""
    if not isinstance(raw, Mapping) or baseline_form(raw) != "tuned" or "search" not in raw:
        return raw
    return {**raw, "search": normalize_space(raw["search"])}


def normalize_space(raw: Any) -> Any:
    """A search space with its parameters written in full."""
    if not isinstance(raw, Mapping):
        return raw
    return {path: normalize_parameter(value) for path, value in raw.items()}


def normalize_store(raw: str) -> str:
    """A store's URL as it is, a folder as `normalize_folder` gives it; `file://` is a folder."""
    if "://" in raw and not raw.startswith("file://"):
        return raw
    return normalize_folder(raw.removeprefix("file://"))


def normalize_folder(raw: Any) -> Any:
    """An absolute folder: a relative one starts where the study is run, as `--out` does."""
    if not isinstance(raw, str) or (expanded := os.path.expanduser(raw)).startswith("~"):
        return raw  # a rule says that there is no such user
    return str(Path(expanded).absolute())


def normalize_parameter(raw: Any) -> Any:
    """A searched setting as a mapping: `[…]` is `{values: […]}`; `{per_task: …}` is opened."""
    if isinstance(raw, Mapping) and "per_task" in raw and not isinstance(raw["per_task"], bool):
        inner = normalize_parameter(raw["per_task"])
        return {**inner, "per_task": True} if isinstance(inner, Mapping) and len(raw) == 1 else raw
    return {"values": raw} if isinstance(raw, list) else raw


def build_plugin(kind: str, raw: Any, at: str, folder: str, faults: list[Fault], key: str = "name") -> Any:
    """Build a plug-in from `{name: …, setting: …}`, or from its bare name."""
    raw = {key: raw} if isinstance(raw, str) else raw
    if not isinstance(raw, Mapping):
        faults.append(Fault(at, "must be a mapping with a name", show_value(raw)))
        return BROKEN
    if key not in raw:
        faults.append(Fault(f"{at}.{key}", f"is required: one of {', '.join(plugins.all_names(kind))}"))
        return BROKEN
    if not isinstance(raw[key], str):
        rule = f"must be text, one of {', '.join(plugins.all_names(kind))}"
        faults.append(Fault(f"{at}.{key}", rule, show_value(raw[key])))
        return BROKEN
    try:
        cls = plugins.find(kind, raw[key])
    except StudyError as error:
        faults += [replace(fault, path=f"{at}.{key}") for fault in error.faults]
        return BROKEN
    plugin = check_type(cls, {k: v for k, v in raw.items() if k != key}, at, faults)
    return plugin if plugin is BROKEN else fetching.resolve_paths(plugin, folder)


def build_readers(raw: Any, folder: str, faults: list[Fault]) -> Any:
    """Build the reader of each task: task name → reader."""
    if not isinstance(raw, list):
        faults.append(Fault("tasks", "must be a list of tasks", show_value(raw)))
        return BROKEN
    readers: dict[str, Any] = {}
    for i, entry in enumerate(raw):
        at = f"tasks[{i}]"
        if not isinstance(entry, Mapping):
            faults.append(Fault(at, "must be a mapping with a name and a reader", show_value(entry)))
            continue
        if "name" not in entry:
            faults.append(Fault(f"{at}.name", "is required"))
            continue
        if not isinstance(name := entry["name"], str):
            faults.append(Fault(f"{at}.name", "must be text", show_value(name)))
            continue
        if name in readers:
            faults.append(Fault(f"{at}.name", "two tasks have this name", repr(name)))
        if not re.fullmatch(r"[\w-]+", name):
            faults.append(Fault(f"{at}.name", "must be letters, digits, _ and -", repr(name)))
        settings = {k: v for k, v in entry.items() if k not in ("name", "evaluate_only")}
        readers.setdefault(name, build_plugin("readers", settings, at, folder, faults, key="reader"))
    if len(raw) < 2:
        faults.append(Fault("tasks", f"needs at least 2 tasks, has {len(raw)}"))
    return readers or BROKEN


def evaluate_only_names(raw: Any, faults: list[Fault]) -> Any:
    """Return the names of the tasks that are never trained; BROKEN where fewer than two are trained."""
    entries = [entry for entry in raw if isinstance(entry, Mapping)] if isinstance(raw, list) else []
    found = len(faults)
    for i, entry in enumerate(entries):
        if not isinstance(value := entry.get("evaluate_only", False), bool):
            faults.append(Fault(f"tasks[{i}].evaluate_only", "must be true or false", show_value(value)))
    names = tuple(entry.get("name") for entry in entries if entry.get("evaluate_only") is True)
    trained = len(entries) - len(names)
    if names and trained < 2:
        rule = "needs at least 2 tasks that are trained, has"
        faults.append(Fault("tasks", f"{rule} {trained}; {len(names)} are only evaluated"))
    return names if len(faults) == found else BROKEN


# -- data ------------------------------------------------------------------------------------------


def read_data(study: Study, at_fault: Set[str] = frozenset()) -> tuple[Study, list[Fault]]:
    """Read what the study's keys need of the tasks' content and of the model; return it with the faults.

    at_fault: sections with faults; nothing that rests on them is checked.
    """
    tasks, warnings, profiles, faults = read_tasks(study)
    faults += split_rules(study, tasks) if "protocol" not in at_fault else []
    simulated = study.workers.engine == "simulated"
    if faults or isinstance(study.model, MissingModel) or (not simulated and study.model.faults()):
        return study, faults
    if not at_fault:
        warnings += data_warnings.study_warnings(study, tasks)
    data = StudyData(tasks, similarity=task_similarity.similarity_matrix(profiles), warnings=tuple(warnings))
    study = replace(study, data=data)
    if not at_fault & {"orders", "tasks"} and (found := list(held_out_rules(study))):
        return study, found
    if not at_fault:  # a part with faults may be no plug-in
        if found := plugins.edited_file_faults(study.plugins_used):
            return study, found
        study = replace(study, data=replace(data, source_hashes=plugins.plugin_hashes(study.plugins_used)))
    if simulated:
        return study.simulated(), faults
    return replace(study, data=replace(study.data, fingerprint=study.local_fingerprint())), faults


def read_tasks(
    study: Study,
) -> tuple[dict[str, TaskData], list[str], list[task_similarity.Profile], list[Fault]]:
    """Read every task: (its data by name, warnings, profiles for the order design `extreme`, faults)."""
    tasks: dict[str, TaskData] = {}
    warnings: list[str] = []
    profiles: list[task_similarity.Profile] = []
    faults: list[Fault] = []
    entries = study.file.content["tasks"]
    names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in entries]
    for name, reader in study.readers.items():
        if reader is BROKEN:
            continue
        path = f"tasks[{names.index(name)}]"
        outside = name in study.evaluate_only
        try:
            task = read_task(reader, name, outside)
        except StudyError as error:
            faults += [replace(fault, path=f"{path}.{fault.path}") for fault in error.faults]
            continue
        broken = list(task_rules(task, outside))
        faults += [replace(fault, path=f"{path}.{fault.path}") for fault in broken]
        warnings += [f"{name}: {warning}" for warning in task.warnings]
        warnings += [] if broken else data_warnings.task_warnings(study, task)
        sizes = {split: len(task.examples[split]) for split in SPLITS}
        tasks[name] = TaskData(name, dict(task.digests), sizes, task.scorer)
        if study.orders.design == "extreme" and not outside:
            profiles.append(task_similarity.profile_of(task))
    return tasks, warnings, profiles, faults
