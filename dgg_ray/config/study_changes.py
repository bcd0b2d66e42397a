"""Changes between a study and the version that was run into its results folder before.

    refuse_folder_of_another    results of another study are never replaced
    describe_changes            what an edited study of the same name changes, said before it is run

Stages are kept by what they trained, so those that both versions need are used again. The earlier
version's `study.json` stays beside the new one as `study.previous.json`. Put back in its place, it lets
`dgg-ray report` write the earlier report again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dgg_ray.config import saved_study
from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import DggError, Fault, StudyError
from dgg_ray.core.json_files import read_json

SECTIONS = ("model", "strategy", "adapter", "training", "orders", "search", "protocol", "budget")
MOST = 20  # changes that are listed one by one
LONGEST = 60  # characters of a value that are shown
ABSENT = "absent"


def refuse_folder_of_another(study: Study, out: Path) -> None:
    """Raise StudyError where the folder holds the results of a study of another name."""
    there = read_json(out / saved_study.SAVED_STUDY)
    raw = there.get("raw") if isinstance(there, Mapping) else None
    name = raw.get("name") if isinstance(raw, Mapping) else None
    if isinstance(name, str) and name != study.name:
        rule = f"holds the results of another study, {name!r}, and this one is {study.name!r}; give it "
        rule += "another --out, or remove that folder"
        raise StudyError([Fault("--out", rule, repr(str(out)))], study.name)


def previous_study(out: Path) -> Study | None:
    """Load the study that was run into a folder; None where there is none that can be read."""
    try:
        return saved_study.load_saved_study(out)
    except (DggError, OSError):
        return None


def describe_changes(study: Study, out: Path) -> str:
    """Describe the differences from the version that was run into the folder; empty without any."""
    old = previous_study(out)
    if old is None:
        if not (out / saved_study.SAVED_STUDY).exists():
            return ""
        file = out / saved_study.SAVED_STUDY
        return f"{file} cannot be read; a run renames it to {saved_study.PREVIOUS_STUDY} and writes a new one"
    changes = [f"  {path}: {then} → {now}" for path, then, now in differences(old, study)]
    if not changes:
        return ""
    lines = [f"{out} holds an earlier version of {study.name!r}; changes since then:", *changes[:MOST]]
    if len(changes) > MOST:
        lines.append(f"  and {len(changes) - MOST} more")
    last = "  a run uses the stages that fit, replaces the report, and keeps the earlier version as "
    return "\n".join([*lines, f"{last}{saved_study.PREVIOUS_STUDY}"])


def differences(old: Study, new: Study) -> Iterator[tuple[str, ...]]:
    """Yield (dotted path, value before, value now) of every setting that differs, with defaults filled in."""
    for path, values in differing_values([old, new]):
        yield path, *around_first_difference(*values)


def differing_values(studies: Sequence[Study]) -> Iterator[tuple[str, list[str]]]:
    """Yield (dotted path, value in each study) of every setting that is not the same in all of them."""
    settings = [flat_settings(study) for study in studies]
    for path in dict.fromkeys(path for values in settings for path in values):
        found = [values.get(path, ABSENT) for values in settings]
        if len(set(found)) > 1:
            yield path, found


def around_first_difference(*texts: str) -> tuple[str, ...]:
    """Return the texts; of long ones the part around their first difference."""
    if max(map(len, texts)) <= LONGEST:
        return texts
    letters = enumerate(zip(*texts, strict=False))
    same = next((i for i, at in letters if len(set(at)) > 1), min(map(len, texts)))
    start = max(same - LONGEST // 2, 0)

    def cut(text: str) -> str:
        return "…" * (start > 0) + text[start : start + LONGEST] + "…" * (len(text) > start + LONGEST)

    return tuple(map(cut, texts))


def flat_settings(study: Study) -> dict[str, str]:
    """Dotted path → value as text, of every setting that bears on what is trained and compared."""
    values: dict[str, str] = {}
    for section in SECTIONS:
        values |= flatten(getattr(study, section), section)
    values["seeds"] = repr({"per_order": len(study.seeds)} if study.own_seeds else study.seeds)
    plugin_at = {"model": study.model, "strategy": study.strategy}
    for name, reader in study.readers.items():
        values |= flatten(reader, f"tasks.{name}")
        plugin_at[f"tasks.{name}.reader"] = reader
        if name in study.evaluate_only:
            values[f"tasks.{name}.evaluate_only"] = "true"
    values |= {path: plugins.plugin_name(plugin) for path, plugin in plugin_at.items()}
    values["tasks"] = ", ".join(study.task_names)
    if study.workers.engine == "simulated":
        values |= flatten(study.simulation, "simulation")
    else:
        values["model.weights"] = study.data.fingerprint[:12]
    return values | {f"orders[{i}]": " > ".join(order) for i, order in enumerate(study.all_orders)}


def flatten(thing: Any, at: str) -> dict[str, str]:
    if is_dataclass(thing):
        thing = {f.name: getattr(thing, f.name) for f in fields(thing)}
    if isinstance(thing, Mapping):
        values: dict[str, str] = {}
        for name, value in thing.items():
            values |= flatten(value, f"{at}.{name}")
        return values
    return {at: str(thing) if isinstance(thing, Path) else repr(thing)}
