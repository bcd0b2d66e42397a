"""The study that was run into a folder, saved as it was checked: results are then read without its data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dgg_ray.config.loader import build_study
from dgg_ray.config.sections import Output
from dgg_ray.config.study import Study, StudyData, WarmStart
from dgg_ray.core import plugins
from dgg_ray.core.errors import ResultsError, StudyError
from dgg_ray.core.json_files import replace_file
from dgg_ray.core.stage import TaskData

SAVED_STUDY, PREVIOUS_STUDY = "study.json", "study.previous.json"


def save_study(study: Study, out: Path) -> None:
    """Write the study into its results folder; an earlier version stays there as PREVIOUS_STUDY."""
    content = {
        "raw": study.file.content,
        "search_method": study.search.method if study.search else None,  # what `auto` stands for may change
        "root": study.file.folder,
        "home": study.file.home,
        "tasks": {name: asdict(data) for name, data in study.data.tasks.items()},
        "fingerprint": study.data.fingerprint,
        "similarity": study.data.similarity,
        "source_hashes": dict(study.data.source_hashes),
        "warm_starts": study.data.warm_starts,
        "store": study.output.store,  # a relative path starts where the study was run
    }
    text = json.dumps(content, indent=1, default=str)
    file = out / SAVED_STUDY
    if file.exists() and file.read_bytes() != text.encode():
        shutil.copyfile(file, out / PREVIOUS_STUDY)
    replace_file(file, text.encode())


def load_saved_study(out: Path) -> Study | None:
    """Load the study that was run into a folder; None where there is none."""
    file = out / SAVED_STUDY
    try:
        return study_from_saved(json.loads(file.read_text(encoding="utf-8")), str(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{file} is damaged ({error}); run the study again") from error


def study_from_saved(content: Mapping[str, Any], source: str) -> Study:
    """Build the study that `save_study` wrote.

    Raises StudyError where its settings are no longer valid, and other errors where the content is damaged.
    """
    plugins.add_search_folders(content["home"])
    study, faults = build_study(content["raw"], content["root"], files=False)
    if study is None or faults:
        raise StudyError(faults, source)
    data = StudyData(
        tasks={name: TaskData(**task) for name, task in content["tasks"].items()},
        fingerprint=content["fingerprint"],
        similarity=tuple(map(tuple, content["similarity"])),
        source_hashes=content["source_hashes"],
        warm_starts=tuple(WarmStart(s, tuple(values), depth) for s, values, depth in content["warm_starts"]),
    )
    file = replace(study.file, home=content["home"])
    search = study.search
    if search and content["raw"]["search"].get("method", "auto") == "auto":
        search = replace(search, method=content.get("search_method", "tpe"))  # the only default before
    return replace(study, search=search, output=Output(content["store"]), data=data, file=file)


def require_saved_study(out: Path) -> Study:
    """Load the study that was run into a folder; ResultsError where there is none."""
    if (study := load_saved_study(out)) is None:
        raise ResultsError(f"{out} holds no study; `dgg-ray run STUDY --out {out}` runs one into it")
    return study
