"""Check a study that came as text, and say what it costs: what a server's child process does for it.

A study names data, models and plug-ins, so it could read other people's files or run code of its own. Before
anything is read, the text is held against the server's rules:

    paths      relative ones start in the server's data folder; all must lie, links followed, below an allowed
               root; URLs must begin with an allowed one
    plug-ins   installed ones only: an import path would run any module that Python finds (core/plugins.py)
    store      the server's own
    trackers   none: they would report to wherever the server's environment points
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgg_ray.config import loader, registry, yaml_edit, yaml_reader
from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import DggError, Fault, ResultsError, StudyError
from dgg_ray.storage import fetching
from dgg_ray.storage.stage_store import open_store

if TYPE_CHECKING:
    from dgg_ray.planning.plan import Plan

WARM_START = "search.warm_start_from["
PLACES = ("model", "tasks", "strategy", "search", "protocol")  # sections that may name files


@dataclass(frozen=True)
class Rules:
    """The limits that a server sets a study.

    store: its place. data: folder or URL where relative paths start. roots: folders and URLs below which
    data and models may lie, `data` among them. results: folder of the results of all studies, by name.
    """

    store: str
    data: str
    roots: tuple[str, ...]
    results: str


# -- before anything is read -----------------------------------------------------------------------


def policy_faults(raw: Any, rules: Rules) -> Iterator[Fault]:
    """Yield what the server does not allow, from the text alone."""
    if not isinstance(raw, Mapping):
        return
    for section in PLACES:
        for path, value in texts(raw.get(section), section):
            if path.startswith(WARM_START) and results_of(value, rules):
                continue
            if fault := place_fault(path, value, rules):
                yield fault
    output = raw.get("output")
    if isinstance(output, Mapping):
        if output.get("store") not in (None, rules.store):
            yield Fault("output.store", f"must be this server's store, {rules.store}, or be left out")
        if output.get("trackers"):
            yield Fault("output.trackers", "must be left out: this server reports to no tracker")


def results_of(folder: str, rules: Rules) -> str:
    """The name of the study whose results folder this is; empty where it is none."""
    place = Path(folder)
    inside = ".." not in place.parts and place.parent == Path(rules.results)
    return place.name if inside else ""


def texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of all text below a value."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from texts(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from texts(inner, f"{path}[{i}]")


def place_fault(path: str, value: str, rules: Rules) -> Fault | None:
    """The fault of a text that names a place outside the roots; None for other texts."""
    if url := fetching.url_of(value):
        if any(is_below_url(url, root) for root in rules.roots if "://" in root):
            return None
        return Fault(path, f"must lie below {' or '.join(rules.roots)}", repr(value))
    place = fetching.as_path(value)
    named = place.is_absolute() or ".." in place.parts or value.startswith("~")
    if "://" in rules.data:
        if not named:
            return None  # below the data's URL
        inside = place
    else:
        try:
            inside = Path(os.path.realpath(Path(rules.data) / place))
            if not (named or inside.exists()):
                return None  # no path, or one that will not be found
        except (OSError, ValueError):  # as long as a text, or with a null byte
            return None
    roots = [Path(os.path.realpath(root)) for root in rules.roots if "://" not in root]
    if ".." not in inside.parts and any(inside.is_relative_to(root) for root in roots):
        return None
    return Fault(path, f"must lie below {' or '.join(rules.roots)}", repr(value))


def is_below_url(url: str, root: str) -> bool:
    return ".." not in url.split("/") and (url == root or url.startswith(root.rstrip("/") + "/"))


# -- checking --------------------------------------------------------------------------------------


def load_text(text: str, rules: Rules) -> Study:
    """Load and check a study that came as text; StudyError holds every fault with its line."""
    with plugins.installed_only():
        return _load_text(text, rules)


def _load_text(text: str, rules: Rules) -> Study:
    from dgg_ray import api  # late: it needs pandas

    try:
        raw, lines, _ = yaml_reader.read_yaml(text)
    except yaml_reader.UnreadableYamlError as error:
        raise StudyError([error.fault]) from None
    if faults := list(policy_faults(raw, rules)):
        faults += notation_and_shape_faults(text, rules, {fault.path for fault in faults})
        raise StudyError(list(yaml_reader.add_lines(faults, lines)))
    for path, value in texts(raw.get("search") if isinstance(raw, Mapping) else None, "search"):
        if path.startswith(WARM_START) and results_of(value, rules):
            fetch_results(value, rules)
    with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(text, encoding="utf-8")
        try:
            return api.load_study(file, rules.data, rules.store)
        except StudyError as error:
            found = [fault for fault in error.faults if fault.path != "output.store"]
            raise StudyError([shown(fault, file) for fault in found or error.faults]) from None


def notation_and_shape_faults(text: str, rules: Rules, known: set[str]) -> list[Fault]:
    """The faults that show without looking at any file, except at these paths."""
    raw, _, faults = yaml_reader.read_yaml(text)
    if isinstance(raw, Mapping):
        without_plugins = {
            key: value
            for key, value in raw.items()
            if not any(path == key or path.startswith((f"{key}.", f"{key}[")) for path in known)
        }
        faults += loader.build_study(without_plugins, registry.ANYWHERE, files=False)[1]
        faults = [f for f in faults if f.path in without_plugins or "." in f.path or "[" in f.path]
    return [fault for fault in faults if fault.path not in known]


def shown(fault: Fault, file: Path) -> Fault:
    """The fault without the name of the server's temporary file."""
    return replace(fault, file="" if fault.file == str(file) else fault.file)


def check(text: str, rules: Rules) -> dict[str, Any]:
    """Check a study: {name, question, faults, warnings, needs}."""
    try:
        study = load_text(text, rules)
    except StudyError as error:
        return {"name": "", "question": "", "faults": as_json(error.faults), "warnings": [], "needs": {}}
    return {
        "name": study.name,
        "question": study.question,
        "faults": as_json(list(yaml_reader.add_lines(name_faults(study, rules), lines_of(text)))),
        "warnings": list(study.data.warnings),
        "needs": needs_of(study),
    }


def name_faults(study: Study, rules: Rules) -> list[Fault]:
    """A fault where another study of the store has the name."""
    before = open_store(rules.store).get_document(registry.document_name(study.name, registry.STUDY))
    if before is None:
        return []
    try:
        stored = registry.part_hashes(before["content"]["raw"])
        registry.refuse_another_study(
            study.name, registry.part_hashes(study.file.content), stored, "this server"
        )
    except StudyError as error:
        return list(error.faults)
    return []


def lines_of(text: str) -> dict[str, int]:
    """The line of each path of a text that can be read."""
    return yaml_reader.read_yaml(text)[1]


def needs_of(study: Study) -> dict[str, float]:
    """GPUs of all worker groups together; cores where they train on CPUs."""
    workers = study.workers
    count = workers.groups * workers.group_size
    return {"gpus": count * workers.gpus} if workers.gpus else {"cpus": count * workers.cpus}


def as_json(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Faults by line, each with its own text."""
    ordered = sorted(faults, key=lambda fault: (fault.file, fault.line, fault.path))
    return [{**vars(fault), "text": str(fault)} for fault in ordered]


def plan(text: str, rules: Rules, detect: float | None = None) -> dict[str, Any]:
    """Predict what a study costs and what its designs detect: `Plan.as_json`, with its `text`.

    detect: a difference in points of 100.
    """
    predicted = plan_of(text, rules, detect)
    return predicted.as_json() | {"text": str(predicted)}


def plan_of(text: str, rules: Rules, detect: float | None = None) -> Plan:
    from dgg_ray import api  # late: it needs pandas

    study = load_text(text, rules)
    return api.plan_study(study, Path(rules.results, study.name), detect, on_this_machine=False)


def predict(text: str, rules: Rules) -> dict[str, Any]:
    """Predict how long a study runs and what it will have spent: {wall_s, unit, forecast}.

    forecast: [mean, low, high] in the unit; it and wall_s are None where nothing was measured.
    """
    cost = plan_of(text, rules).cost_forecast
    total = cost.total(cost.unit)
    wall_s = cost.remaining.wall.mean if cost.remaining else None
    return {"wall_s": wall_s, "unit": cost.unit, "forecast": list(total) if total else None}


# -- new texts from old ones -----------------------------------------------------------------------


def clone(text: str, name: str, changes: Mapping[str, Any]) -> str:
    """Return the study's text with another name and changed settings; comments stay.

    changes: dotted path → value, such as {"strategy.buffer": 50}. Raises StudyError for a path that the file
    cannot hold.
    """
    raw, _, _ = yaml_reader.read_yaml(text)
    faults = []
    for path, value in {"name": name, **changes}.items():
        words = path.replace("[", ".").replace("]", "").split(".")
        steps = [int(word) if word.isdecimal() else word for word in words]
        try:
            for depth in range(1, len(steps)):  # a section that the file leaves out
                if lookup(raw, steps[:depth]) is None:
                    if isinstance(steps[depth - 1], int):
                        raise KeyError(path)
                    text = yaml_edit.set_value(text, steps[:depth], nested(steps[depth:], value))
                    break
            else:
                text = yaml_edit.set_value(text, steps, value)
            raw, _, _ = yaml_reader.read_yaml(text)
        except (KeyError, yaml_reader.UnreadableYamlError):
            faults.append(Fault(path, "cannot be changed in this file; change its text instead"))
    if faults:
        raise StudyError(faults, "changes")
    return text


def extend(text: str, rules: Rules, tasks: Mapping[str, str], reader: str, name: str | None) -> str:
    """Return the study's text with these tasks after its own (planning/extend.py); StudyError for faults.

    tasks: name → a folder, a train file, or the name of a reader that needs no files.
    """
    from dgg_ray.planning.extend import extended_text

    found = (place_fault(f"tasks.{task}", source, rules) for task, source in tasks.items())
    if faults := list(filter(None, found)):
        raise StudyError(faults, "tasks")
    study = load_text(text, rules)
    results = str(Path(rules.results) / study.name)
    fetch_results(results, rules)
    try:
        with plugins.installed_only():
            return extended_text(study, text, tasks, reader, Path(results), name)
    except StudyError as error:
        raise StudyError([replace(f, path=f.path.removeprefix("--")) for f in error.faults]) from None


def fetch_results(folder: str, rules: Rules) -> None:
    """Make a study's results folder from the store where this machine lacks it, if the store knows it."""
    with suppress(DggError):
        if not Path(folder).exists():
            registry.fetch_results(open_store(rules.store), Path(folder).name, Path(folder))


def lookup(raw: Any, steps: Sequence[str | int]) -> Any:
    """The value at a path; None where there is none."""
    for step in steps:
        if isinstance(raw, Mapping):
            raw = raw.get(step)
        elif isinstance(raw, list) and isinstance(step, int) and step < len(raw):
            raw = raw[step]
        else:
            return None
    return raw


def nested(steps: Sequence[str | int], value: Any) -> Any:
    for step in reversed(steps):
        value = {step: value}
    return value


def text_of(name: str, rules: Rules) -> str:
    """The text of a study that was run with the store, as a file; ResultsError where there is none."""
    found = open_store(rules.store).get_document(registry.document_name(name, registry.STUDY))
    if found is None:
        raise ResultsError(f"the store holds no study {name!r}")
    content = found["content"]["raw"]
    output = {k: v for k, v in (content.get("output") or {}).items() if k != "store"}
    others = {k: v for k, v in content.items() if k != "output"}
    return yaml_edit.to_file_text(others | ({"output": output} if output else {}))


def schema() -> dict[str, Any]:
    """The JSON Schema of a study file."""
    from dgg_ray.config.json_schema import schema

    return schema()


def spent_of(name: str, rules: Rules) -> dict[str, float]:
    """Return what a study has spent so far, by unit; nothing where the store does not know it."""
    from dgg_ray.cost.model import CostModel, unit_rates

    store = open_store(rules.store)
    try:
        study = registry.stored_study(store, name)
    except DggError:
        return {}
    seconds = sum(CostModel(study, store).spent.values())
    return {unit: seconds * rate for unit, rate in unit_rates(study.workers).items()}


def strategies() -> list[dict[str, Any]]:
    """The strategies: {name, about, known_from, parameters: [{name, about, default}]}."""
    from dgg_ray.config.json_schema import schema

    forms = schema()["properties"]["strategy"]["anyOf"]
    found = []
    for form in forms:
        name = form.get("properties", {}).get("name", {}).get("const")
        if not name:
            continue
        parameters = [
            {"name": key, "about": value.get("description", ""), "default": value.get("default")}
            for key, value in form["properties"].items()
            if key != "name"
        ]
        known = plugins.find("strategies", name).known_from
        found.append(
            {"name": name, "about": form["description"], "known_from": known, "parameters": parameters}
        )
    return found


def decide(name: str, rules: Rules, decision: Mapping[str, Any], by: str) -> dict[str, Any]:
    """Record a decision about a study; StudyError where it makes no sense (planning/study_control.py)."""
    from dgg_ray.planning import study_control

    return study_control.record(open_store(rules.store), name, decision, by).as_json()
