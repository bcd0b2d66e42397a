"""Views of a study's results, which its pages show: each is a function from an `Outcome` to JSON.

    view(outcome, "summary", {})                         the bytes of the JSON
    picture(outcome, "charts", "17")                     the bytes of an example's picture, its media type
    write_file(outcome, folder, "figure", {"name": …})   the path of a file that was made

The views are made of the functions that the report is made of, so both say the same. All numbers are scores
in [0, 1], hours, seconds or unix times; what is not known is null.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgg_ray.api import Outcome
from dgg_ray.core.errors import ResultsError, did_you_mean
from dgg_ray.service.views.answers import examples
from dgg_ray.service.views.answers import picture as example_picture
from dgg_ray.service.views.as_json import to_bytes
from dgg_ray.service.views.compared_studies import compare_settings
from dgg_ray.service.views.files import adapter_file, figure_file, figures, report_file, table_file
from dgg_ray.service.views.findings import comparison, costs, failures, progress, settings, summary
from dgg_ray.service.views.scores import curves, matrices, orders
from dgg_ray.service.views.search_course import search
from dgg_ray.service.views.stage_tree import tree

VIEWS: dict[str, Callable[..., dict[str, Any]]] = {
    make.__name__: make
    for make in (
        *(summary, settings, comparison, matrices, curves, search, orders),
        *(tree, failures, costs, progress, figures, examples),
    )
}
FILES: dict[str, Callable[..., Path]] = {
    "figure": figure_file,
    "table": table_file,
    "report": report_file,
    "adapter": adapter_file,
}


def view(outcome: Outcome, name: str, params: Mapping[str, Any]) -> bytes:
    """Return a view as JSON. Raises ResultsError for a view or a parameter that does not exist."""
    make = known("view", name, VIEWS)
    return to_bytes(make(outcome, **checked(make, 1, params)))


def compare(subjects: Sequence[tuple[Outcome, str]]) -> bytes:
    """Return the comparison of settings of several studies as JSON; see `compared_studies`."""
    return to_bytes(compare_settings(subjects))


def picture(outcome: Outcome, params: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the picture of an example and its media type."""
    return example_picture(outcome, **checked(example_picture, 1, params))


def write_file(outcome: Outcome, folder: Path, what: str, params: Mapping[str, Any]) -> Path:
    """Make a file of a study in a folder, if it is not there already, and return its path."""
    make = known("file", what, FILES)
    return make(outcome, folder, **checked(make, 2, params))


def known(what: str, name: str, functions: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name not in functions:
        raise ResultsError(
            f"no {what} is called {name!r}; there are {', '.join(functions)}{did_you_mean(name, functions)}"
        )
    return functions[name]


def checked(make: Callable[..., Any], skip: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters as the function takes them; those of an address are text.

    skip: number of leading parameters that are not the caller's. Raises ResultsError for an unknown name, a
    missing one, and text where a number is wanted.
    """
    wanted = dict(list(inspect.signature(make).parameters.items())[skip:])
    values: dict[str, Any] = {}
    for name, value in params.items():
        if name not in wanted:
            raise ResultsError(
                f"no parameter is called {name!r}; there are {', '.join(wanted)}{did_you_mean(name, wanted)}"
            )
        if "int" in wanted[name].annotation and isinstance(value, str):
            if not value.removeprefix("-").isdecimal():
                raise ResultsError(f"{name} must be a whole number, got {value!r}")
            value = int(value)
        values[name] = value
    missing = [n for n, p in wanted.items() if p.default is inspect.Parameter.empty and n not in values]
    if missing:
        raise ResultsError(f"{make.__name__} needs the parameter {missing[0]!r}")
    return values
