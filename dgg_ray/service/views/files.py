"""Files of a study, made on request: figures, tables, the report, adapters.

A file is made once for a folder and stays there. It is written beside its place and then renamed, so that
whoever finds it finds it whole.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgg_ray.analysis.order_sensitivity import order_tables
from dgg_ray.analysis.table_files import write_csv
from dgg_ray.api import Outcome
from dgg_ray.core.errors import ResultsError
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.report import page
from dgg_ray.report.figure_files import FIGURE_FORMATS, draw, figure_names, write_drawing
from dgg_ray.service.views.answers import require

SCORES = "table"  # the table of all scores; every other one is named as its file beside the report


def figures(outcome: Outcome) -> dict[str, Any]:
    """The figures for which the study has data: {name, caption, reading}, in the report's order.

    missing: figures that could not be drawn, a sentence each.
    """
    items, optional = [], OptionalOutputs()
    for name in figure_names() if outcome.begun else ():
        drawing = optional.value_or(f"the figure {name}", None, draw, name, outcome.results)
        if drawing is not None:
            items.append({"name": name, "caption": drawing.caption, "reading": drawing.reading})
    return {"items": items, "formats": FIGURE_FORMATS, "missing": optional.messages}


def figure_file(outcome: Outcome, folder: Path, name: str, format: str = "svg") -> Path:
    """Draw a figure into a file. Raises ResultsError where the study has no data for it."""
    require("figure", name, figure_names())
    require("format", format, FIGURE_FORMATS)

    def write(file: Path) -> None:
        drawing = draw(name, outcome.results) if outcome.begun else None
        if drawing is None:
            raise ResultsError(f"{outcome.results.name} has no data for the figure {name} yet")
        write_drawing(drawing, file)

    return made(folder / "figures" / f"{name}.{format}", write)


def table_file(outcome: Outcome, folder: Path, name: str = SCORES, format: str = "csv") -> Path:
    """Write a table as CSV; the table of scores as Parquet too."""
    results = outcome.results
    if not outcome.begun:
        raise ResultsError(f"study {results.name!r} has no finished stage, so it has no tables")
    tables = page.study_tables(results)
    known = [SCORES, *tables, *ORDER_TABLES]
    require("table", name, known)
    require("format", format, ("csv", "parquet") if name == SCORES else ("csv",))

    def write(file: Path) -> None:
        if name == SCORES:
            page.write_scores(results, file.parent)
            return
        frame = tables[name]() if name in tables else order_tables(results)[name]
        if not len(frame.columns):
            raise ResultsError(f"{results.name} has no table {name}")
        write_csv(frame, file)

    return made(folder / f"{name}.{format}", write)


ORDER_TABLES = tuple(
    f"robustness{suffix}" for suffix in ("", "_tasks", "_effects", "_ranks", "_agreement", "_settings")
)


def report_file(outcome: Outcome, folder: Path) -> Path:
    """Write the report and its files into the subfolder `report`; return the path of its page."""
    target = folder / "report"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft", dir=folder))
        try:
            page.write_report(outcome.results, draft)
            draft.replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target / "report.html"


def adapter_file(
    outcome: Outcome, folder: Path, setting: str = "", order: str = "", seed: int | None = None
) -> Path:
    """Zip the adapter at the end of a run with its model card, as `dgg-ray export` writes it.

    order, seed: of the run; by default the first. Raises ResultsError where the store has no such adapter.
    """
    chosen = outcome.setting(setting or None)
    _, run = outcome._run(order or None, seed, chosen)
    name = f"{outcome.results.name}-{chosen}-{run.stages[-1].key[:8]}"

    def write(file: Path) -> None:
        exported = file.parent / name
        outcome.export(exported, chosen, order or None, seed)
        with zipfile.ZipFile(file, "w") as opened:  # weights do not compress
            for path in sorted(exported.rglob("*")):
                opened.write(path, path.relative_to(file.parent))

    return made(folder / f"{name}.zip", write)


def made(file: Path, write: Callable[[Path], object]) -> Path:
    """Return the file, which is written first if it is not there.

    write: is given a path of the same name in a folder of its own.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft", dir=file.parent))
        try:
            write(draft / file.name)
            (draft / file.name).replace(file)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return file
