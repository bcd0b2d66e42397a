"""A study's figures: drawn by their modules in figures/, and written as PNG, PDF, SVG and CSV."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.table_files import write_csv
from dgg_ray.core import plugins
from dgg_ray.report.page_elements import FigureImage

SECTION_FIGURES = (  # shown in the sections of the page, in this order; all others go to the appendix
    "forest",
    "per_task",
    "score_matrix",
    "learning_along",
    "retention",
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
DPI = 160  # of the PNG, and of the parts of a PDF or SVG that are rasterized because they have too many marks
WITHOUT_DATE = {"CreationDate": None}  # a date would make every file different
FIGURE_FORMATS = ("svg", "png", "pdf", "csv")


def figure_names() -> list[str]:
    """List the modules in figures/: those of the sections in the page's order, then the others."""
    available = plugins.names("figures")
    in_sections = [name for name in SECTION_FIGURES if name in available]
    return in_sections + [name for name in available if name not in SECTION_FIGURES]


class Drawing(NamedTuple):
    """A drawn figure. caption: the first line of its module's docstring; reading: how to read it."""

    figure: Figure
    data: pd.DataFrame
    caption: str
    reading: str


def draw(name: str, results: Results) -> Drawing | None:
    """Draw figures/NAME.py; None where the study has no data for it."""
    module = plugins.plugin_module("figures", name)
    drawing: tuple[Figure, pd.DataFrame] | None = module.draw(results)
    if drawing is None:
        return None
    figure, data = drawing
    figure.set_dpi(DPI)
    caption = (module.__doc__ or name).strip().splitlines()[0]
    return Drawing(figure, data, caption, getattr(module, "READING", ""))


def draw_figure(name: str, results: Results, folder: Path) -> FigureImage | None:
    """Draw figures/NAME.py and write its PNG, PDF and CSV; None where the study has no data for it."""
    drawing = draw(name, results)
    if drawing is None:
        return None
    figure = drawing.figure
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)  # `savefig` would draw everything twice
    figure.set_layout_engine("none")  # the layout is computed once and serves the PDF too
    (folder / f"{name}.png").write_bytes(png.getvalue())
    FigureCanvasPdf(figure).print_pdf(folder / f"{name}.pdf", metadata=WITHOUT_DATE)
    write_csv(drawing.data, folder / f"{name}.csv")
    width = round(96 * figure.get_figwidth())  # CSS has 96 pixels an inch
    png_text = base64.b64encode(png.getvalue()).decode()
    return FigureImage(name, drawing.caption, drawing.reading, width, png_text)


def write_drawing(drawing: Drawing, file: Path) -> None:
    """Write a figure, or its numbers, in the format that the file's suffix names: one of FIGURE_FORMATS."""
    figure = drawing.figure
    match file.suffix:
        case ".csv":
            write_csv(drawing.data, file)
        case ".png":
            with file.open("wb") as opened:
                FigureCanvasAgg(figure).print_png(opened)
        case ".pdf":
            FigureCanvasAgg(figure).draw()  # computes the layout
            figure.set_layout_engine("none")
            FigureCanvasPdf(figure).print_pdf(file, metadata=WITHOUT_DATE)
        case ".svg":
            with matplotlib.rc_context({"svg.hashsalt": file.stem}):  # ids, else random in every file
                FigureCanvasAgg(figure).draw()
                figure.set_layout_engine("none")
                FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
