"""Answers: JSON with an ETag, and errors as application/problem+json (RFC 9457)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dgg_ray.core.errors import DggError, Fault, ResultsError, StoreError, StudyError
from dgg_ray.service.checks import as_json
from dgg_ray.service.refused import RefusedError

PROBLEM = "application/problem+json"


def answer(request: Request, content: Any, status: int = 200) -> Response:
    """JSON with an ETag; 304 without a body where the caller has it already."""
    return answer_bytes(request, json.dumps(content, allow_nan=False).encode(), status=status)


def answer_bytes(
    request: Request, body: bytes, media_type: str = "application/json", status: int = 200
) -> Response:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"etag": etag, "cache-control": "private, no-cache"}
    if status == 200 and etag in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(body, status, headers, media_type)


def problem(status: int, detail: str, **more: Any) -> Response:
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    content = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return Response(json.dumps(content).encode(), status, media_type=PROBLEM)


def problem_of(error: Exception) -> Response:
    """The answer for an error: what a person can mend is named, anything else is said to be our fault."""
    if isinstance(error, RefusedError):
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
        found = problem(error.status, str(error))
        found.headers.update(headers)
        return found
    if isinstance(error, StudyError):
        return problem(422, str(error), faults=as_json(error.faults))
    if isinstance(error, ResultsError):
        return problem(404, str(error))
    if isinstance(error, StoreError | OSError):
        return problem(503, f"the store does not answer: {type(error).__name__}: {error}")
    if isinstance(error, DggError):
        return problem(409, str(error))
    return problem(500, f"{type(error).__name__}; the server's log has more")


Page = Callable[[Request, int, str], Response | None]


def add_handlers(app: FastAPI, page: Page) -> None:
    """Let every error become a problem in the same form, or a page where a person asked.

    page: returns the page for (request, status, detail); None where a program asked.
    """

    def shown(request: Request, found: Response) -> Response:
        return page(request, found.status_code, json.loads(bytes(found.body))["detail"]) or found

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return await run_in_threadpool(shown, request, problem(error.status_code, str(error.detail)))

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = [fault_of(found) for found in error.errors()]
        found = problem(422, "the request breaks rules", faults=as_json(faults))
        return await run_in_threadpool(shown, request, found)

    async def on_error(request: Request, error: Exception) -> Response:
        return await run_in_threadpool(shown, request, problem_of(error))

    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    for kind in (RefusedError, DggError, OSError, Exception):  # the last is also logged, with its traceback
        app.add_exception_handler(kind, on_error)


def fault_of(found: Mapping[str, Any]) -> Fault:
    """A fault from what pydantic found in a request."""
    path = ".".join(str(part) for part in found["loc"][1:]) or str(found["loc"][0])
    value = jsonable_encoder(found.get("input"), custom_encoder={bytes: repr})
    shown = json.dumps(value)[:80] if not isinstance(value, dict | list) else ""
    return Fault(path, str(found["msg"]).lower(), shown)
