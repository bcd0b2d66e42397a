"""Logging in and out, and what a page answers that a person may not see.

The cookie is SameSite=Strict: a browser does not send it when somebody follows a link from another site, and
so would see the login page on every link that a colleague sent. Such a request is told to come again, which
it then does from this site's own page, with the cookie.
"""

from __future__ import annotations

from html import escape
from http import HTTPStatus
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from dgg_ray.service import rendering
from dgg_ray.service.context import Server, context_of
from dgg_ray.service.refused import RefusedError
from dgg_ray.service.security import COOKIE, check_origin, token_of

router = APIRouter(include_in_schema=False)

KEPT_S = 30 * 86_400  # a session, in the browser
HOME = "/"
WRONG = "No user has this token. Copy it whole, or ask an admin for a new one."
TITLES = {403: "Not for you", 404: "Not here", 429: "Too many requests", 503: "Not available now"}
PLAIN_PATHS = ("/api/", "/static/", "/healthz")  # whose errors are no pages


@router.get("/login")
def login_page(request: Request, server: Server, token: str = "", next: str = "") -> Response:
    """The form; with a token in the address, log in at once so that it leaves the address."""
    if token:
        return log_in(request, token, next)
    if server.access.open_to_all:
        return RedirectResponse(local(next), 303)
    return form(request, next)


@router.post("/login")
async def login(request: Request) -> Response:
    fields = parse_qs((await request.body()).decode("utf-8", "replace"))
    token, next = (fields.get(key, [""])[0].strip() for key in ("token", "next"))
    return await run_in_threadpool(log_in, request, token, next)


def log_in(request: Request, token: str, next: str) -> Response:
    check_origin(request)
    try:
        known = context_of(request).access.log_in(request, token)
    except RefusedError as error:
        return form(request, next, str(error), error.status)
    if not known:
        return form(request, next, WRONG, 401)
    response = RedirectResponse(local(next), 303, {"cache-control": "no-store"})
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, token, KEPT_S, httponly=True, samesite="strict", secure=secure)
    return response


@router.post("/logout")
def log_out(request: Request) -> Response:
    check_origin(request)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def form(request: Request, next: str, message: str = "", status: int = 200) -> Response:
    values = {"next": "" if local(next) == HOME else next, "message": message}
    return rendering.page(request, "login.html.j2", None, status, **values)


def local(address: str) -> str:
    """An address of this server; the front page for any other."""
    parts = urlsplit(address)
    inside = address.startswith("/") and not address.startswith("//") and not (parts.scheme or parts.netloc)
    return address if inside and "\\" not in address and address.isprintable() else HOME


def refusal(request: Request, status: int, detail: str) -> Response | None:
    """The answer to a person for an error; None where a program asked."""
    if request.url.path.startswith(PLAIN_PATHS):
        return None
    if status == 401:
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if request.headers.get("sec-fetch-site") == "cross-site" and request.method == "GET":
            return again(here)
        return RedirectResponse("/login" + (f"?next={quote(here, safe='/')}" if here != HOME else ""), 303)
    if detail == HTTPStatus.NOT_FOUND.phrase:  # the framework's own word for an unknown path
        detail = f"there is no page {request.url.path}"
    access = context_of(request).access
    user = access.local_user() if access.open_to_all else access.user_of_token(token_of(request)[0])
    title = TITLES.get(status, "Something went wrong" if status >= 500 else "Refused")
    return rendering.page(request, "error.html.j2", user, status, title=title, detail=detail)


def again(address: str) -> Response:
    """A page that asks for the address once more."""
    where = escape(local(address))
    text = f'<!doctype html><meta http-equiv="refresh" content="0; url={where}"><a href="{where}">Go on</a>'
    return Response(text, 200, {"cache-control": "no-store"}, "text/html; charset=utf-8")
