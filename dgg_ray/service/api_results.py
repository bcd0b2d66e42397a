"""The HTTP API of results: views, tables, figures, examples with pictures, the report, adapters."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import FileResponse

from dgg_ray.service.context import Context, Server, Viewer
from dgg_ray.service.examples_query import PagedExamplesQuery
from dgg_ray.service.refused import RefusedError
from dgg_ray.service.responses import answer_bytes

router = APIRouter(prefix="/api/v1", tags=["results"])

View = Literal[
    "summary", "settings", "comparison", "matrices", "curves", "search",
    "orders", "tree", "failures", "costs", "progress", "figures",
]  # fmt: skip
Text = Annotated[str, Query(max_length=400)]
MOST_SUBJECTS = 8


@router.get("/studies/{name}/view/{view}")
def view(request: Request, server: Server, user: Viewer, name: str, view: View) -> Response:
    """One view of a study's results, as JSON; the report is made from the same numbers and sentences."""
    return answer_bytes(request, results(server, name, view))


@router.get("/studies/{name}/examples")
def examples(
    request: Request,
    server: Server,
    user: Viewer,
    name: str,
    wanted: Annotated[PagedExamplesQuery, Query()],
) -> Response:
    """Questions with their answers: what was right and is wrong now, what is wrong, or all."""
    return answer_bytes(request, results(server, name, "examples", **wanted.model_dump()))


@router.get("/compare")
def compare(
    request: Request,
    server: Server,
    user: Viewer,
    subject: Annotated[list[str], Query(max_length=MOST_SUBJECTS, description="STUDY or STUDY:SETTING")],
) -> Response:
    """Two to eight studies or settings beside each other, on the blocks that they share."""
    if len(subject) < 2:
        raise RefusedError("needs two to eight subjects: ?subject=STUDY&subject=STUDY:SETTING", 422)
    return answer_bytes(request, server.reader.compare(pairs_of(server, subject)))


def pairs_of(server: Context, subjects: Sequence[str]) -> list[tuple[str, str]]:
    """Each subject, STUDY or STUDY:SETTING, as (study, setting). Raises RefusedError for an unknown study."""
    known, pairs = set(server.service.names()), []
    for text in subjects:
        study, _, setting = (text, "", "") if text in known else text.rpartition(":")
        server.service.card(study or text)
        pairs.append((study or text, setting))
    return pairs


@router.get("/studies/{name}/tables/{table}")
def table(server: Server, user: Viewer, name: str, table: str) -> Response:
    """A table as a file: table.csv, table.parquet, settings.csv, comparison.csv, robustness.csv …"""
    stem, _, ending = table.rpartition(".")
    return file(server, name, "table", name=stem, format=ending)


@router.get("/studies/{name}/figures/{figure}")
def figure(server: Server, user: Viewer, name: str, figure: str) -> Response:
    """A figure of the report: NAME.svg, .png, .pdf, or its numbers as .csv."""
    stem, _, ending = figure.rpartition(".")
    return file(server, name, "figure", name=stem, format=ending)


@router.get("/studies/{name}/report")
def report(server: Server, user: Viewer, name: str) -> Response:
    """The report, one page that opens without a network."""
    found = file(server, name, "report")
    found.headers["content-security-policy"] = REPORT_POLICY
    return found


REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"


@router.get("/studies/{name}/pictures/{task}/{example}")
def picture(
    request: Request, server: Server, user: Viewer, name: str, task: str, example: str, split: Text = ""
) -> Response:
    """The picture of a question."""
    server.service.card(name)
    content, media_type = server.reader.picture(name, task, example, split)
    return answer_bytes(request, content, media_type)


@router.get("/studies/{name}/adapter.zip")
def adapter(server: Server, user: Viewer, name: str, setting: Text = "") -> Response:
    """A setting's adapter with its model card; without a setting, that of the chosen one."""
    found = file(server, name, "adapter", setting=setting)
    found.headers["content-disposition"] = 'attachment; filename="adapter.zip"'
    return found


def results(server: Context, study: str, view: str, /, **params: Any) -> bytes:
    server.service.card(study)  # refuses what there is not
    return server.reader.view(study, view, **params)


def file(server: Context, study: str, what: str, /, **params: Any) -> Response:
    server.service.card(study)
    path = server.reader.file(study, what, **params)
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return FileResponse(path, media_type=media_type, headers={"cache-control": "private, no-cache"})
