"""A study's results → a page that answers seven questions, its figures, and every number as a file.

Every file, figure and section has a fence of its own: what fails is named on the page, the rest is there.
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from dgg_ray.analysis import examples, order_sensitivity
from dgg_ray.analysis.per_task import per_task
from dgg_ray.analysis.results import CELL, Results
from dgg_ray.analysis.run_table import chosen, compare, final_split, runs
from dgg_ray.analysis.standings import judged
from dgg_ray.analysis.table_files import whole, write_csv, write_sorted
from dgg_ray.analysis.verdict import SHOWN, verdict
from dgg_ray.core import plugins
from dgg_ray.core.fence import Fence
from dgg_ray.report import appendix
from dgg_ray.report.answer import answer, failures, notices
from dgg_ray.report.parts import Drawn, Section
from dgg_ray.report.questions import sections
from dgg_ray.stats.formats import score_text
from dgg_ray.storage.backend import Folder

__all__ = ["answer", "compare", "runs", "write"]

ASKED = (  # figures that a question of the page asks for; others go to the appendix
    "forest",
    "per_task",
    "score_matrix",
    "learning_along",
    "stability_plasticity",
    "alpha_effect",
    "order_spread",
    "order_effects",
    "order_ranks",
    "search",
    "importance",
    "pareto",
    "training_loss",
)
DPI = 160  # of the PNG, and of what is too many marks for the PDF
STATUS = {  # verdict's status → as the page shows it
    "clear": "a clear lead over the simpler methods",
    "within noise": "within noise",
    "beaten": "worse than another method",
    "floor": "cannot tell: scores near the floor",
    "ceiling": "cannot tell: scores near the ceiling",
    "not compared": "not compared",
    "nothing judged": "nothing judged yet",
}


def write(results: Results, folder: Path, fence: Fence | None = None) -> Path:
    """Writes report.html and its files into `folder`, and returns the page's path.

        report.html                     opens without a network
        figures/NAME.png .pdf .csv      each figure and its numbers
        table.parquet  table.csv        every cell, without times: the same results give the same bytes
        settings.csv  comparison.csv    settings judged; the chosen one against its baselines
        per_task.csv  examples.csv      every task by method; answers that were right once and are wrong now
        costs.csv     table.tex         costs of every stage; the comparison for LaTeX (booktabs)
        robustness*.csv                 how much the order matters, see robustness.frames

    fence: collects what fails on the way; without one the page names it all the same. Raises ResultsError
    for a study without a finished stage, and what writing the page itself raises.
    """
    runs(results, final_split(results))  # raises before anything is written
    fence = fence or Fence()
    folder.mkdir(parents=True, exist_ok=True)
    with fence("the folder of the figures"):
        (folder / "figures").mkdir(exist_ok=True)
    with ThreadPoolExecutor(1) as beside:  # Arrow sorts and writes while the figures are drawn
        written = beside.submit(write_sorted, results.table.drop(columns="seconds"), CELL, folder / "table")
        figures = [drawn for name in figure_names() if (drawn := figure(name, results, folder, fence))]
        with fence("table.parquet"):
            written.result()
    write_tables(results, folder, fence)
    made = page(results, figures, fence, folder).encode()
    Folder(folder).write("report.html", made)  # whole, or the earlier one stays
    return folder / "report.html"


def write_tables(results: Results, folder: Path, fence: Fence) -> None:
    """All tables but the long one."""
    split = final_split(results)
    frames: dict[str, Callable[[], pd.DataFrame]] = {
        "settings": lambda: judged(results),
        "comparison": lambda: compare(results, split),
        "per_task": lambda: per_task(results, split),
        "examples": lambda: examples.lost(results, split, chosen(results) or ""),
        "costs": lambda: results.costs,
    }
    for name, make in frames.items():
        with fence(f"{name}.csv"):
            frame = make()
            if len(frame.columns):
                write_csv(frame, folder / f"{name}.csv")
    with fence("the table of what orders do"):
        order_sensitivity.write(results, folder)
    with fence("table.tex"), whole(folder / "table.tex"):
        (folder / "table.tex").write_text(latex(compare(results, split), split), encoding="utf-8")


def page(results: Results, figures: Sequence[Drawn], fence: Fence, folder: Path | None = None) -> str:
    """The report as one HTML page with its figures in it; links lead to the files in `folder`."""
    by_name = {figure.name: figure for figure in figures}
    asked = sections(results, by_name, fence)
    further = {name: figure for name, figure in by_name.items() if name not in ASKED}
    more = appendix.folds(results, further, fence)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        results=results,
        status=fence.tried("the verdict", "", lambda: STATUS.get(verdict(results).status, "")),
        notices=fence.tried("notices", [], notices, results),
        failed=failures(results),
        sections=asked,
        appendix=Section("appendix", "Appendix", "Appendix", (), more),
        missing=fence.lines,
        files=files(folder) if folder else [],
    )


def files(folder: Path) -> list[str]:
    """Every table and figure beside the page, by name."""
    kinds = (".csv", ".parquet", ".tex", ".pdf")
    found = [*folder.iterdir(), *(folder / "figures").glob("*")]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.suffix in kinds)


# -- figures -----------------------------------------------------------------------------------------


def figure_names() -> list[str]:
    """Every file in figures/, the known ones in the page's order."""
    found = plugins.names("figures")
    return [name for name in ASKED if name in found] + [name for name in found if name not in ASKED]


def figure(name: str, results: Results, folder: Path, fence: Fence) -> Drawn | None:
    return fence.tried(f"the figure {name}", None, draw, name, results, folder / "figures")


def draw(name: str, results: Results, folder: Path) -> Drawn | None:
    """Draws figures/NAME.py, writes its PNG, PDF and CSV; None where the study has nothing for it."""
    module = plugins.module("figures", name)
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
    describe: Callable[[pd.DataFrame], str] = getattr(module, "alt", lambda data: "")
    width = round(96 * figure.get_figwidth())  # CSS has 96 pixels an inch
    alt = f"{caption} {describe(data)}".strip()
    return Drawn(name, caption, reading, width, base64.b64encode(image.getvalue()).decode(), alt)


# -- LaTeX -------------------------------------------------------------------------------------------


def latex(comparison: pd.DataFrame, split: str) -> str:
    """The comparison as a booktabs table, in percent, with 95 % intervals."""
    signs = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "−": "$-$", "–": "--", "α": r"$\alpha$"}

    def safe(text: object) -> str:
        return "".join(signs.get(c, c) for c in str(text))

    lines = [
        rf"% {split} split, in percent; mean and 95\,\% interval.",
        r"% Needs \usepackage{booktabs}.",
        rf"\begin{{tabular}}{{l{'r' * len(SHOWN)}}}",
        r"\toprule",
        " & ".join(["method", *(rf"{name} $\uparrow$" for name in SHOWN.values())]) + r" \\",
        r"\midrule",
    ]
    for label, group in comparison.groupby("label", sort=False):
        cells: Mapping[str, Mapping[str, Any]] = {row["metric"]: row for row in group.to_dict("records")}
        lines.append(" & ".join([safe(label), *(safe(score_text(cells[name])) for name in SHOWN)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
