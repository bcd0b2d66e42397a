"""A study's results → a page that opens with the answer, its figures, and every number as a file."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from dgg_ray import drift, next_steps, plugins, robustness
from dgg_ray.agreement import trades, unsearched
from dgg_ray.answer import SHOWN, answer
from dgg_ray.disparity import disparity, overall
from dgg_ray.fence import Fence
from dgg_ray.formats import difference_text, interval_text
from dgg_ray.front import front
from dgg_ray.optimism import audit_sentences, race_sentences, warning
from dgg_ray.outcomes import (
    CELL,
    Results,
    Spending,
    chosen,
    compare,
    final_split,
    name_of,
    percent,
    runs,
    text_of,
)
from dgg_ray.rates import Estimate, show
from dgg_ray.standings import judged
from dgg_ray.tables import write_csv, write_sorted

__all__ = ["answer", "compare", "runs", "write"]

FIGURES = (
    "stability_plasticity",
    "pareto",
    "search",
    "alpha_effect",
    "importance",
    "learning_along",
    "order_spread",
    "order_effects",
    "order_ranks",
    "score_matrix",
)  # the page's order; others follow
DPI = 160  # of the PNG, and of what is too many marks for the PDF
MANY = 60  # rows of the settings table on the page; settings.csv has all


class Drawn(NamedTuple):
    """name: file in plots/; caption: its docstring's first line; reading: its READING, how to read it.

    width: natural, in CSS pixels; png: as base64.
    """

    name: str
    caption: str
    reading: str
    width: int
    png: str


def write(results: Results, folder: Path, fence: Fence | None = None) -> Path:
    """Writes report.html and its files into `folder`, and returns the page's path.

        report.html                     opens without a network
        figures/NAME.png .pdf .csv      each figure and its numbers
        table.parquet  table.csv        every cell, without times: the same results give the same bytes
        settings.csv  comparison.csv    settings judged; the recommended one against its rivals
        costs.csv     table.tex         costs of every stage; the comparison for LaTeX (booktabs)
        robustness*.csv                 how much the order matters, see robustness.frames

    Raises ResultsError for a study without a finished stage.
    """
    opening = answer(results)  # raises before anything is written
    fence = fence or Fence()
    folder.mkdir(parents=True, exist_ok=True)
    with fence("the folder of the figures"):
        (folder / "figures").mkdir(exist_ok=True)
    split = final_split(results)
    comparison, best = compare(results, split), judged(results)
    with ThreadPoolExecutor(1) as beside:  # Arrow sorts and writes while the figures are drawn
        written = beside.submit(write_sorted, results.table.drop(columns="seconds"), CELL, folder / "table")
        drawn = [
            fence.tried(f"the figure {name}", None, draw, name, results, folder / "figures")
            for name in figure_names()
        ]
        with fence("table.parquet"):
            written.result()
    for name, frame in {"settings": best, "comparison": comparison, "costs": results.costs}.items():
        with fence(f"{name}.csv"):
            write_csv(frame, folder / f"{name}.csv")
    with fence("robustness.csv"):
        robustness.write(results, folder)
    with fence("table.tex"):
        (folder / "table.tex").write_text(latex(comparison, split), encoding="utf-8")

    path = folder / "report.html"
    path.write_text(page(results, opening, [*filter(None, drawn)], comparison, best), encoding="utf-8")
    return path


def page(
    results: Results, opening: list[str], figures: list[Drawn], comparison: pd.DataFrame, best: pd.DataFrame
) -> str:
    """The report as one HTML page with its figures in it."""
    split = final_split(results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        results=results,
        answer=opening,
        bold=[*warning(results), *drift.warning(results.machines)],
        next_steps=next_steps.sentences(results),
        went=[*race_sentences(results.search), *audit_sentences(results)] if results.search else [],
        pareto=pareto_rows(results, best),
        figures=figures,
        split=split,
        comparison=comparison_rows(comparison),
        shown=SHOWN,
        trades=trades(results),
        spread=spread_rows(disparity(results, split), overall(results, split)),
        robust=robustness.sentences(results)[1:],  # the first is in the answer
        best=judged_rows(results, best),
        all_judged=len(best),
        knobs=[name_of(k) + " (not searched)" * (k in unsearched(results)) for k in results.knobs],
        costs=cost_rows(results.costs),
        machines=drift.rows(results.machines),
        spending=spending_rows(results.spending),
        facts=flat(results.facts),
    )


# -- figures -----------------------------------------------------------------------------------------


def figure_names() -> list[str]:
    """Every file in plots/, the known ones in the page's order."""
    found = plugins.names("plots")
    return [name for name in FIGURES if name in found] + [name for name in found if name not in FIGURES]


def draw(name: str, results: Results, folder: Path) -> Drawn | None:
    """Draws plots/NAME.py, writes its PNG, PDF and CSV; None where the study has nothing for it."""
    module = plugins.module("plots", name)
    made: tuple[Figure, pd.DataFrame] | None = module.draw(results)
    if made is None:
        return None
    figure, data = made
    figure.set_dpi(DPI)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)  # `savefig` goes over everything twice
    figure.set_layout_engine("none")  # it is laid out, once for both
    (folder / f"{name}.png").write_bytes(image.getvalue())
    undated = {"CreationDate": None}  # or no two files would be equal
    FigureCanvasPdf(figure).print_pdf(folder / f"{name}.pdf", metadata=undated)
    write_csv(data, folder / f"{name}.csv")
    caption = (module.__doc__ or name).strip().splitlines()[0]
    reading = getattr(module, "READING", "")
    width = round(96 * figure.get_figwidth())  # CSS has 96 pixels an inch
    return Drawn(name, caption, reading, width, base64.b64encode(image.getvalue()).decode())


# -- tables ------------------------------------------------------------------------------------------


def with_interval(row: Mapping[str, Any], name: str = "score") -> str:
    """`71.2 (95 % CI 69.8 to 72.6)`; the values themselves where there is no interval."""
    start = "" if name == "score" else f"{name}_"
    bounds = (row[f"{start}low"], row[f"{start}high"], row[f"{start}n"])
    return interval_text(row[name], *bounds, row[f"{start}values"])


def comparison_rows(comparison: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per label: every shown metric with its interval, and the paired difference in each."""
    rows = []
    for label, group in comparison.groupby("label", sort=False):
        cells = {row["metric"]: row for row in group.to_dict("records")}
        rows.append(
            {
                "label": label,
                "cells": {metric: with_interval(row) for metric, row in cells.items()},
                "gaps": {metric: difference_text(row) for metric, row in cells.items()},
            }
        )
    return rows


def judged_rows(results: Results, best: pd.DataFrame) -> list[dict[str, Any]]:
    """The settings table as the page prints it: the first ones, and whatever is compared."""
    total = results.search.blocks if results.search else 1
    shown = best[(best.index < MANY) | (best["role"] != "")]
    return [
        {
            "setting": row["setting"],
            "role": row["role"],
            "strategy": row["strategy"],
            "best": row["setting"] == chosen(results),
            "values": [text_of(row[knob]) for knob in results.knobs],
            "blocks": row["blocks"] if row["whole"] else f"after {row['blocks']} of {total}",
            "cells": [with_interval(row, name) for name in SHOWN],
        }
        for row in shown.to_dict("records")
    ]


def pareto_rows(results: Results, best: pd.DataFrame) -> list[list[str]]:
    """The Pareto set of several objectives, by the first of them: setting, searched values, objectives."""
    search = results.search
    if search is None or len(search.objective) < 2:
        return []
    known = {row["setting"]: row for row in best.to_dict("records")}
    rows = [known[c.setting] for c in front(search) if c.setting in known]
    return [
        [row["setting"] + " ★" * (row["setting"] == chosen(results))]
        + [text_of(row[knob]) for knob in results.knobs]
        + [with_interval(row, name) for name in search.objective]
        for row in rows
    ]


def spread_rows(tasks: pd.DataFrame, faa: pd.DataFrame) -> dict[str, Any]:
    """The order table: a row per task, for the disparities and for FAA; a column per label."""
    cells = {
        (row["label"], row["task"]): (
            f"OPD {percent(row['opd'])}" if np.isnan(row["lowest"]) else extent(row),
            f"expected {percent(row['expected'])}{bounds(row, 'low', 'high')}",
        )
        for row in tasks.to_dict("records")
    }
    for row in faa.to_dict("records"):
        cells[row["label"], "FAA"] = extent(row), f"sd {percent(row['sd'])}{bounds(row, 'sd_low', 'sd_high')}"
    labels = list(dict.fromkeys(tasks["label"]))
    names = {"AOPD": "mean over tasks (AOPD)", "MOPD": "largest (MOPD)"}
    rows = dict.fromkeys(sorted(tasks["task"], key=["FAA", "MOPD", "AOPD"].count)) | (
        {"FAA": None} if labels else {}
    )
    return {
        "labels": labels,
        "rows": [
            (names.get(task, task), [cells.get((label, task), ("–", "")) for label in labels])
            for task in rows
        ],
    }


def extent(row: Mapping[str, Any]) -> str:
    """`41.0 to 62.5`."""
    return f"{percent(row['lowest'])} to {percent(row['highest'])}"


def bounds(row: Mapping[str, Any], low: str, high: str) -> str:
    """` [12.0, 34.5]`, or nothing where there is no interval."""
    return "" if np.isnan(row[low]) else f" [{percent(row[low])}, {percent(row[high])}]"


def cost_rows(costs: pd.DataFrame) -> list[list[str]]:
    """Per task and in all: stages asked for, trained, shared; seconds of training and exams; peak memory."""
    if costs.empty:
        return []
    groups = [*costs.groupby("learned", sort=True), ("all", costs)]
    return [
        [
            str(task),
            str(int(group["runs"].sum())),
            str(len(group)),
            str(int(group["runs"].sum()) - len(group)),
            f"{group['learn_seconds'].sum():,.1f}",
            f"{group['exam_seconds'].sum():,.1f}",
            "–" if group["peak_memory_mb"].isna().all() else f"{group['peak_memory_mb'].max():,.0f}",
        ]
        for task, group in groups
    ]


def spending_rows(spending: Spending) -> list[list[str]]:
    """Per run and unit: what was predicted at its start, and what it spent."""
    return [
        [run, unit, show(Estimate(**predicted)) if predicted else "nothing was measured yet", f"{spent:.3g}"]
        for run, unit, predicted, spent in spending.runs
    ] + [
        ["all", unit, spending.budget and f"budget {spending.budget}", f"{spent:.3g}"]
        for unit, spent in spending.spent.items()
    ]


def flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Facts as (dotted name, text), in their order; a mapping of plain values is one line."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            rows += flat(value, f"{prefix}{name}.")
        elif isinstance(value, Mapping):
            rows.append((f"{prefix}{name}", ", ".join(f"{k} {v}" for k, v in value.items())))
        else:
            text = "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows.append((f"{prefix}{name}", text))
    return rows


def latex(comparison: pd.DataFrame, split: str) -> str:
    """The comparison as a booktabs table, in percent, with 95 % intervals."""
    signs = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "−": "$-$", "–": "--"}

    def safe(text: object) -> str:
        return "".join(signs.get(c, c) for c in str(text))

    lines = [
        rf"% {split} split, in percent; mean and 95\,\% interval.",
        r"% Needs \usepackage{booktabs}.",
        rf"\begin{{tabular}}{{l{'r' * len(SHOWN)}}}",
        r"\toprule",
        " & ".join(["strategy", *(rf"{name} $\uparrow$" for name in SHOWN.values())]) + r" \\",
        r"\midrule",
    ]
    for row in comparison_rows(comparison):
        cells = [safe(row["cells"][name]) for name in SHOWN]
        lines.append(" & ".join([safe(row["label"]), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
