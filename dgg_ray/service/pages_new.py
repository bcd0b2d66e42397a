"""The page on which a study is written: its text, what is wrong with it, what it would cost, and off it goes.

The page's form does all of that by itself; `static/editor.js` does it while one types.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from dgg_ray.core.errors import Fault, StudyError
from dgg_ray.service import accounts, checks, rendering, study_templates
from dgg_ray.service.context import Context, Server, Viewer, context_of
from dgg_ray.service.refused import RefusedError
from dgg_ray.service.state import User

router = APIRouter(include_in_schema=False)

LONGEST = 2**20  # characters of a study's text, as the API has it
LONGEST_FIELD = 40
NUMBER = re.compile(r"[+-]?\d{1,9}(\.\d{1,9})?")
Name = Annotated[str, Query(max_length=200)]


class Extension(BaseModel):
    """A task to add after those of a study. files: a folder, a train file, or a reader without files."""

    extend: Annotated[str, Field(max_length=200)] = ""
    task: Annotated[str, Field(max_length=200)] = ""
    files: Annotated[str, Field(max_length=2000)] = ""
    reader: Annotated[str, Field(max_length=200)] = "llava"


@router.get("/new")
def new(
    request: Request,
    server: Server,
    user: Viewer,
    wanted: Annotated[Extension, Query()],
    template: Name = "",
    clone: Name = "",
) -> Response:
    """The editor with a template, with the text of a study under a free name, or with one more task."""
    if wanted.extend:
        return extended(request, server, user, wanted)
    known = {found["name"]: found["text"] for found in study_templates.templates()}
    if clone:
        text = server.service.text(clone)
    elif template and template not in known:
        raise RefusedError(f"there is no template {template!r}", 404)
    else:
        template = template or next(iter(known))
        text = known[template]
    text = under_a_free_name(server, text, clone or template)
    return shown(request, user, text, started_from=template, clone=clone)


def extended(request: Request, server: Context, user: User, wanted: Extension) -> Response:
    """The editor with a study's text and one more task; with the faults of what cannot be added."""
    name, tasks = wanted.extend, {wanted.task.strip(): wanted.files.strip()}
    try:
        text = server.service.extended_text(name, tasks, wanted.reader.strip() or "llava")
    except StudyError as error:
        faults = checks.as_json(error.faults)
        return shown(request, user, server.service.text(name), 422, clone=name, faults=faults)
    return shown(request, user, text, clone=name)


def under_a_free_name(server: Context, text: str, name: str) -> str:
    """The text, with a number behind the study's name where that is taken."""
    taken, new_name, number = set(server.service.names()), name, 2
    while new_name in taken:
        new_name, number = f"{name}-{number}", number + 1
    if new_name == name:
        return text
    try:
        return server.service.child.call(checks.clone, text, new_name, {})
    except StudyError:
        return text  # the editor shows where it is broken


def shown(request: Request, user: User, text: str, status: int = 200, **values: Any) -> Response:
    """The page. values: what the person gave, and what was found."""
    defaults = {"started_from": "", "clone": "", "priority": "0", "detect": "", "refusal": ""}
    found = {"faults": None, "warnings": [], "plan": None}
    return rendering.page(
        request,
        "new.html.j2",
        user,
        status,
        text=text,
        templates=[(t["name"], t["name"]) for t in study_templates.templates()],
        may_run=accounts.may(user, "run"),
        **{**defaults, **found, **values},
    )


@router.post("/new")
async def act(request: Request) -> Response:
    """Check, plan or submit what the form holds."""
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    return await run_in_threadpool(done, request, {name: values[-1] for name, values in fields.items()})


def done(request: Request, fields: dict[str, str]) -> Response:
    server, wanted = context_of(request), fields.get("act", "check")
    user = server.access.user(request, "run" if wanted == "submit" else "view", fields.get("csrf", ""))
    text = fields.get("text", "").replace("\r\n", "\n")
    given = {key: fields.get(key, "")[:LONGEST_FIELD].strip() for key in ("priority", "detect")}
    values: dict[str, Any] = {**given, "faults": []}
    try:
        if len(text) > LONGEST:
            raise RefusedError(f"a study may have {LONGEST:,} characters", 413)
        if wanted == "submit":
            priority = number("priority", given["priority"] or "0", "must be a whole number", whole=True)
            study = server.service.submit(text, user.name, int(priority))
            return RedirectResponse(f"/studies/{quote(study.name, safe='')}", 303)
        if wanted == "plan":
            values["plan"] = server.service.plan(text, difference(given["detect"]))
        else:
            found = server.service.check(text)
            values |= {"faults": found["faults"], "warnings": found["warnings"]}
    except StudyError as error:
        values["faults"] = checks.as_json(error.faults)
        return shown(request, user, text, 422, **values)
    except RefusedError as error:
        if error.status != 409:
            raise
        values["faults"] = checks.as_json([Fault("name", str(error), line=line_of_name(text))])
        return shown(request, user, text, 409, **values)
    return shown(request, user, text, **values)


def number(field: str, value: str, rule: str, whole: bool = False) -> float:
    """The number in a field of the form; StudyError where there is none."""
    if not NUMBER.fullmatch(value) or (whole and "." in value):
        raise StudyError([Fault(field, rule, repr(value))], "the form")
    return float(value)


def difference(value: str) -> float | None:
    """The difference to detect, in points; None where none is given."""
    rule = "must be a number above 0, and at most 100"
    found = number("detect", value, rule) if value else None
    if found is not None and not 0 < found <= 100:
        raise StudyError([Fault("detect", rule, repr(value))], "the form")
    return found


def line_of_name(text: str) -> int:
    """The line that names the study; 0 where none does."""
    lines = enumerate(text.split("\n"), 1)
    return next((i for i, line in lines if line.startswith("name:")), 0)
