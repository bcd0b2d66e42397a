"""Write a study's report: a page that answers seven questions, its figures, and every number as a file.

If a file, figure or section fails, the page names it and still shows the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from dgg_ray.analysis import examples, order_sensitivity
from dgg_ray.analysis.comparison_tables import compare, settings_table
from dgg_ray.analysis.outside_scores import changes_outside
from dgg_ray.analysis.per_task import per_task
from dgg_ray.analysis.results import CELL_COLUMNS, Results
from dgg_ray.analysis.run_table import chosen_setting, final_split, runs
from dgg_ray.analysis.table_files import remove_if_incomplete, write_csv, write_sorted
from dgg_ray.analysis.verdict import METRIC_LABELS, STATUS_LABELS, metric_labels, verdict
from dgg_ray.core.json_files import replace_file
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.report.appendix import appendix_elements
from dgg_ray.report.figure_files import SECTION_FIGURES, draw_figure, figure_names
from dgg_ray.report.page_elements import FigureImage, Section
from dgg_ray.report.page_sections import build_sections
from dgg_ray.report.summary import failure_sentences, notice_sentences
from dgg_ray.stats.formats import format_score


def write_report(results: Results, folder: Path, optional: OptionalOutputs | None = None) -> Path:
    """Write report.html and its files into `folder`, and return the path of the page.

        report.html                     opens without a network
        figures/NAME.png .pdf .csv      each figure and its numbers
        table.parquet  table.csv        every score, without times: equal results give equal bytes
        settings.csv  comparison.csv    all evaluated settings; the chosen setting against its baselines
        per_task.csv  examples.csv      every task by method; answers that were correct once and are wrong now
        evaluate_only.csv               tasks that are only evaluated, by method, in studies with any
        methods.csv                     what each compared method needs, trains and stores
        costs.csv     table.tex         costs of every stage; the comparison for LaTeX (booktabs)
        robustness*.csv                 sensitivity to the order of the tasks, see order_sensitivity.write

    optional: collects the parts that fail. The page names them too. Raises ResultsError for a
    study without a finished stage, and the error of a page that cannot be written.
    """
    runs(results, final_split(results))  # raises before anything is written
    optional = optional or OptionalOutputs()
    folder.mkdir(parents=True, exist_ok=True)
    with optional.attempt("the folder of the figures"):
        (folder / "figures").mkdir(exist_ok=True)
    with ThreadPoolExecutor(1) as executor:  # Arrow sorts and writes the table while the figures are drawn
        table_written = executor.submit(write_scores, results, folder)
        figures = []
        for name in figure_names():
            image = optional.value_or(
                f"the figure {name}", None, draw_figure, name, results, folder / "figures"
            )
            if image is not None:
                figures.append(image)
        with optional.attempt("table.parquet"):
            table_written.result()
    write_tables(results, folder, optional)
    html = render(results, figures, optional, folder).encode()
    replace_file(folder / "report.html", html)  # replaces the earlier page only once the new one is complete
    return folder / "report.html"


def write_scores(results: Results, folder: Path) -> None:
    """Write every score as table.parquet and table.csv, without the times of the stages."""
    write_sorted(results.table.drop(columns="seconds"), CELL_COLUMNS, folder / "table")


def write_tables(results: Results, folder: Path, optional: OptionalOutputs) -> None:
    """Write all tables except the table of scores."""
    split = final_split(results)
    for name, make in study_tables(results).items():
        with optional.attempt(f"{name}.csv"):
            frame = make()
            if len(frame.columns):
                write_csv(frame, folder / f"{name}.csv")
    with optional.attempt("the tables of order sensitivity"):
        order_sensitivity.write_order_tables(results, folder)
    with optional.attempt("table.tex"), remove_if_incomplete(folder / "table.tex"):
        text = latex_table(compare(results, split), split, metric_labels(results))
        (folder / "table.tex").write_text(text, encoding="utf-8")


@cache
def page_template() -> jinja2.Template:
    """Return the template of the page, compiled once for all reports of a process."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2")


def study_tables(results: Results) -> dict[str, Callable[[], pd.DataFrame]]:
    """Map the name of each table but the scores and those about orders to the function that makes it.

    A table without columns is one that the study does not have.
    """
    split = final_split(results)
    return {
        "settings": lambda: settings_table(results),
        "comparison": lambda: compare(results, split),
        "per_task": lambda: per_task(results, split),
        "evaluate_only": lambda: changes_outside(results, split),
        "examples": lambda: examples.forgotten_answers(results, split, chosen_setting(results) or ""),
        "costs": lambda: results.costs,
        "methods": lambda: pd.DataFrame() if results.methods is None else results.methods,
    }


def render(
    results: Results, figures: Sequence[FigureImage], optional: OptionalOutputs, folder: Path | None = None
) -> str:
    """Return the report as one HTML page that contains its figures and links to the files in `folder`."""
    by_name = {figure.name: figure for figure in figures}
    sections = build_sections(results, by_name, optional)
    further = {name: figure for name, figure in by_name.items() if name not in SECTION_FIGURES}
    appendix_parts = appendix_elements(results, further, optional)
    return page_template().render(
        results=results,
        status=optional.value_or("the verdict", "", lambda: STATUS_LABELS.get(verdict(results).status, "")),
        notices=optional.value_or("the notices", [], notice_sentences, results),
        failed=failure_sentences(results),
        sections=sections,
        appendix=Section("appendix", "Appendix", "Appendix", (), appendix_parts),
        missing=optional.messages,
        files=linked_files(folder) if folder else [],
    )


def linked_files(folder: Path) -> list[str]:
    """List the tables and figures in `folder`, as paths relative to the page."""
    suffixes = (".csv", ".parquet", ".tex", ".pdf")
    paths = [*folder.iterdir(), *(folder / "figures").glob("*")]
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.suffix in suffixes)


# -- LaTeX -------------------------------------------------------------------------------------------


def latex_table(comparison: pd.DataFrame, split: str, metrics: Mapping[str, str] = METRIC_LABELS) -> str:
    """Return the comparison as a booktabs table, in percent, with 95 % intervals.

    metrics: those that are shown, with their headers.
    """
    escapes = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "−": "$-$", "–": "--", "α": r"$\alpha$"}

    def escape(text: object) -> str:
        return "".join(escapes.get(character, character) for character in str(text))

    lines = [
        rf"% {split} split, in percent; mean and 95\,\% interval.",
        r"% Needs \usepackage{booktabs}.",
        rf"\begin{{tabular}}{{l{'r' * len(metrics)}}}",
        r"\toprule",
        " & ".join(["method", *(rf"{name} $\uparrow$" for name in metrics.values())]) + r" \\",
        r"\midrule",
    ]
    for label, group in comparison.groupby("label", sort=False):
        rows: list[Any] = group.to_dict("records")
        by_metric = {row["metric"]: row for row in rows}
        cells = [escape(label), *(escape(format_score(by_metric[metric])) for metric in METRIC_LABELS)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
