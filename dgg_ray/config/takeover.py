"""The earlier content of a results folder, before a study is run into it.

    refuse_folder_of_another    another study's results are never replaced
    changes                     what an edited study of the same name says differently, told before it is run

Stages are kept by what they learned, so those that both versions need are used again. The earlier version's
`study.json` stays beside the new one as `study.previous.json`: put back in its place, `dgg-ray report` writes
the earlier report again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dgg_ray.config import loader
from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import DggError, Fault, StudyError
from dgg_ray.storage import manifest

SECTIONS = ("model", "strategy", "adapter", "training", "orders", "search", "protocol", "budget")
MOST = 20  # changes that are listed one by one
LONGEST = 60  # characters of a value that are shown
ABSENT = "not there"


def refuse_folder_of_another(study: Study, out: Path) -> None:
    """StudyError where the folder holds the results of a study of another name."""
    there = manifest.noted(out / loader.KEPT)
    raw = there.get("raw") if isinstance(there, Mapping) else None
    name = raw.get("name") if isinstance(raw, Mapping) else None
    if isinstance(name, str) and name != study.name:
        rule = f"holds the results of another study, {name!r}, and this one is {study.name!r}; give it "
        rule += "another --out, or remove that folder"
        raise StudyError([Fault("--out", rule, repr(str(out)))], study.name)


def before(out: Path) -> Study | None:
    """The study that was run into a folder; None where there is none, or none that can be read any more."""
    try:
        return loader.kept(out)
    except (DggError, OSError):
        return None


def changes(study: Study, out: Path) -> str:
    """Differences from the version that was run into the folder; none where that was this one."""
    old = before(out)
    if old is None:
        if not (out / loader.KEPT).exists():
            return ""
        kept = out / loader.KEPT
        return f"{kept} cannot be read; a run keeps it as {loader.PREVIOUS} and writes it anew"
    found = [f"  {path}: {then} → {now}" for path, then, now in differences(old, study)]
    if not found:
        return ""
    more = [f"  and {len(found) - MOST} more"] * (len(found) > MOST)
    first = f"{out} holds an earlier version of {study.name!r}; what is different now:"
    last = "  a run uses the stages that fit, replaces the report, and keeps the earlier version as "
    return "\n".join([first, *found[:MOST], *more, f"{last}{loader.PREVIOUS}"])


def differences(old: Study, new: Study) -> Iterator[tuple[str, str, str]]:
    """(Dotted path, value before, value now) of every setting that is not the same, defaults filled in."""
    then, now = settings(old), settings(new)
    for path in then | now:
        a, b = then.get(path, ABSENT), now.get(path, ABSENT)
        if a != b:
            yield path, *where_they_part(a, b)


def where_they_part(a: str, b: str) -> tuple[str, str]:
    """Both texts, of long ones the stretch in which they differ."""
    if max(len(a), len(b)) <= LONGEST:
        return a, b
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(same - LONGEST // 2, 0)

    def cut(text: str) -> str:
        return "…" * (start > 0) + text[start : start + LONGEST] + "…" * (len(text) > start + LONGEST)

    return cut(a), cut(b)


def settings(study: Study) -> dict[str, str]:
    """Dotted path → its value as text, of all that bears on what is learned and compared."""
    found: dict[str, str] = {}
    for section in SECTIONS:
        found |= flat(getattr(study, section), section)
    found["seeds"] = repr({"per_order": len(study.seeds)} if study.own_seeds else study.seeds)
    plugged = {"model": study.model, "strategy": study.strategy}
    for name, reader in study.readers.items():
        found |= flat(reader, f"tasks.{name}")
        plugged[f"tasks.{name}.reader"] = reader
    found |= {path: plugins.name_of(plugin) for path, plugin in plugged.items()}
    found["tasks"] = ", ".join(study.names)
    if study.workers.engine == "simulated":
        found |= flat(study.simulation, "simulation")
    else:
        found["model.weights"] = study.fingerprint[:12]
    return found | {f"orders[{i}]": " > ".join(order) for i, order in enumerate(study.all_orders)}


def flat(thing: Any, at: str) -> dict[str, str]:
    if is_dataclass(thing):
        thing = {f.name: getattr(thing, f.name) for f in fields(thing)}
    if isinstance(thing, Mapping):
        found: dict[str, str] = {}
        for name, value in thing.items():
            found |= flat(value, f"{at}.{name}")
        return found
    return {at: str(thing) if isinstance(thing, Path) else repr(thing)}
