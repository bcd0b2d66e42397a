"""The pages of one study, of its examples, and of several studies side by side.

A view that is not read yet would hold a page up, so a page waits for it WAIT_S and then says that it is being
read, and asks again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from threading import Lock
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from dgg_ray.config.decisions import Decision, pinned_settings, stopped_settings
from dgg_ray.core.errors import DggError
from dgg_ray.service import accounts, rendering
from dgg_ray.service.api_results import MOST_SUBJECTS, pairs_of
from dgg_ray.service.context import Context, Server, Viewer
from dgg_ray.service.examples_query import ExamplesQuery
from dgg_ray.service.state import OVER, User

router = APIRouter(include_in_schema=False)

WAIT_S = 2.5
THREADS = ThreadPoolExecutor(16, "pages")  # they wait for the reader
TABS = {
    "results": "Results",
    "matrices": "Score matrices",
    "search": "Search",
    "orders": "Orders",
    "stages": "Stages",
    "failures": "Failures",
    "costs": "Costs",
    "log": "Log",
    "history": "History",
    "text": "Study file",
}
VIEWS = {  # of the results, that a tab shows
    "results": ("comparison",),
    "matrices": ("matrices",),
    "search": ("search", "settings"),
    "orders": ("orders",),
    "stages": ("tree",),
    "failures": ("failures",),
    "costs": ("costs",),
}
MOST_ROWS = 200  # of a table on a page; the file has all
Tab = Literal[
    "results", "matrices", "search", "orders", "stages", "failures", "costs", "log", "history", "text"
]


class Readings:
    """Views that are being read, each by one thread, however many pages wait for it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.futures: dict[tuple[Callable[..., bytes], str], Future[bytes]] = {}

    def of(self, ask: Callable[..., bytes], *arguments: Any, **parameters: Any) -> Future[bytes]:
        """The answer that is on its way already, or else a new one."""
        key = (ask, json.dumps([arguments, parameters], sort_keys=True))
        with self.lock:
            if key in self.futures:
                return self.futures[key]
            future = self.futures[key] = THREADS.submit(ask, *arguments, **parameters)
        future.add_done_callback(lambda _: self.futures.pop(key))
        return future


READINGS = Readings()


class Views:
    """The results that a page could get. pending: whether some of them are still being read."""

    def __init__(self) -> None:
        self.pending, self.problem = False, ""

    def get(self, ask: Callable[..., bytes], *arguments: Any, **parameters: Any) -> Any:
        """The view; None where there is none yet."""
        try:
            return json.loads(READINGS.of(ask, *arguments, **parameters).result(WAIT_S))
        except NotYetError:
            self.pending = True
        except (DggError, OSError) as error:
            self.problem = self.problem or str(error)
        return None


@router.get("/studies/{name}")
def study(
    request: Request,
    server: Server,
    user: Viewer,
    name: str,
    tab: Tab = "results",
    setting: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """One study: the answer in words, its progress, and one part of the results."""
    service = server.service
    card, views = service.card(name), Views()
    summary = None if not has_results(server, name) else views.get(server.reader.view, name, "summary")
    found = {}
    for view in VIEWS.get(tab, ()) if summary and summary["begun"] else ():
        parameters = {"setting": setting} if view == "matrices" and setting else {}
        found[view] = views.get(server.reader.view, name, view, **parameters)
    submitted = service.journal.state.studies.get(name)
    decisions = decisions_of(server, name) if tab == "search" else []
    return rendering.page(
        request,
        "study.html.j2",
        user,
        card=card,
        tab=tab,
        tabs=TABS,
        summary=summary,
        views=found,
        pending=views.pending,
        problem=views.problem,
        setting=setting,
        most=MOST_ROWS,
        actions=actions_of(card, user),
        pinned=pinned_settings(decisions),
        stopped=stopped_settings(decisions),
        log=service.log(name) if tab == "log" else "",
        history=history_of(server, name) if tab == "history" else [],
        text=service.text(name) if tab == "text" else "",
        run=submitted.run if submitted else 0,
    )


def has_results(server: Context, name: str) -> bool:
    """Return whether the store knows the study, which it does once it began to run."""
    return name in server.service.known


def actions_of(card: dict[str, Any], user: User) -> set[str]:
    """The actions that the user may take on the study in its state.

    A study that was run elsewhere is an admin's, and is started and stopped where it runs.
    """
    allowed = {"clone"} if accounts.may(user, "run") else set[str]()
    mine = user.role == "admin" or (card["submitted_here"] and card["owner"] == user.name)
    if not (mine and accounts.may(user, "run")) or card["state"] == "stopping":
        return allowed
    if card["state"] in (*OVER, "silent"):
        return allowed | {"delete"} | ({"resume", "budget"} if card["submitted_here"] else set())
    steered = {"stop", "priority"} if card["submitted_here"] else set[str]()
    return allowed | steered | ({"decide", "budget"} if card["state"] == "running" else set())


def decisions_of(server: Context, name: str) -> list[Decision]:
    """The decisions about the study, in their order."""
    return [Decision.parse(found) for found in server.service.decisions(name)]


def history_of(server: Context, name: str) -> list[dict[str, Any]]:
    """The study's history, the newest event first: the journal's, and decisions while it ran."""
    submitted = server.service.journal.state.studies.get(name)
    events = [{"text": event["kind"], **event} for event in (submitted.history if submitted else [])]
    decided = [
        {"text": Decision.parse(decision).deed, **decision} for decision in server.service.decisions(name)
    ]
    return sorted([*events, *decided], key=lambda event: event["at"], reverse=True)


# -- examples --------------------------------------------------------------------------------------


@router.get("/studies/{name}/examples")
def examples(
    request: Request,
    server: Server,
    user: Viewer,
    name: str,
    wanted: Annotated[ExamplesQuery, Query()],
) -> Response:
    """Questions with their pictures and answers: what was right before and is wrong now."""
    card, views, found = server.service.card(name), Views(), None
    if has_results(server, name):
        found = views.get(server.reader.view, name, "examples", **wanted.model_dump())
    return rendering.page(
        request,
        "examples.html.j2",
        user,
        card=card,
        found=found,
        wanted=wanted.model_dump() | {"stage": "" if wanted.stage is None else str(wanted.stage)},
        pending=views.pending,
        problem=views.problem,
    )


# -- several studies -------------------------------------------------------------------------------


@router.get("/compare")
def compare(
    request: Request,
    server: Server,
    user: Viewer,
    subject: Annotated[list[str] | None, Query(max_length=50)] = None,
) -> Response:
    """Two to eight studies or settings, on the blocks that they share."""
    chosen, views, found = [s for s in dict.fromkeys(subject or ()) if s], Views(), None
    names = server.service.names()
    if 2 <= len(chosen) <= MOST_SUBJECTS:
        try:
            found = views.get(server.reader.compare, pairs_of(server, chosen))
        except DggError as error:
            views.problem = str(error)
    return rendering.page(
        request,
        "compare.html.j2",
        user,
        chosen=chosen,
        names=names,
        most=MOST_SUBJECTS,
        found=found,
        pending=views.pending,
        problem=views.problem,
    )
