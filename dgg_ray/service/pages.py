"""The pages: the list of studies, the cluster and what was spent, the users, and the API's description."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from dgg_ray.service import accounts, rendering, study_templates
from dgg_ray.service.api_admin import list_users, queue_of, totals_of
from dgg_ray.service.api_reference import sections
from dgg_ray.service.api_results import MOST_SUBJECTS
from dgg_ray.service.api_studies import Listing, listed
from dgg_ray.service.context import Admin, Context, Server, Viewer
from dgg_ray.service.state import ROLES, User

router = APIRouter(include_in_schema=False)

STATES = ("running", "starting", "queued", "stopping", "finished", "stopped", "failed", "silent")
SORTS = (
    ("changed", "last change"),
    ("name", "name"),
    ("state", "state"),
    ("owner", "owner"),
    ("priority", "priority"),
    ("place", "place in the queue"),
)
UNITS = ("worker-hours", "GPU-hours", "money")
MOST_BARS = 40  # of a list of what was spent; the others are one bar together
MOST_ROWS = 100  # of what waits
Unit = Literal["worker-hours", "GPU-hours", "money"]


# -- studies ---------------------------------------------------------------------------------------


@router.get("/")
def studies(request: Request, server: Server, user: Viewer, wanted: Annotated[Listing, Query()]) -> Response:
    """The front page: all studies."""
    cards = server.service.cards()
    anywhere = listed(
        cards, wanted.model_copy(update={"state": "", "page": 1, "per_page": max(1, len(cards))})
    )
    found = listed(cards, wanted)
    if wanted.page > found["pages"]:
        found = listed(cards, wanted.model_copy(update={"page": found["pages"]}))
    owners = {card["owner"] for card in cards} - {""}
    counts = Counter(card["state"] for card in anywhere["items"])
    return rendering.page(
        request,
        "studies.html.j2",
        user,
        found=found,
        counts={state: counts[state] for state in STATES if counts[state] or state == wanted.state},
        in_all=anywhere["total"],
        known=len(cards),
        owner_options=[("", "everybody"), *((name, name) for name in sorted(owners))],
        sorts=SORTS,
        wanted=wanted,
        values=wanted.model_dump(exclude_defaults=True),
        most_compared=MOST_SUBJECTS,
        may_run=accounts.may(user, "run"),
        first=study_templates.templates()[0],
    )


# -- the cluster and what was spent ----------------------------------------------------------------


@router.get("/cluster")
def cluster(
    request: Request,
    server: Server,
    user: Viewer,
    by: Literal["user", "study", "week"] = "user",
    unit: Unit = "worker-hours",
) -> Response:
    """The studies that run, those that wait and why, and the spending."""
    runs = server.service.spending()
    totals = totals_of(runs, by)
    units = [name for name in UNITS if any(total.get(name) for total in totals)] or [UNITS[0]]
    unit = unit if unit in units else UNITS[0]
    return rendering.page(
        request,
        "cluster.html.j2",
        user,
        queue=queue_of(server.service),
        most=MOST_ROWS,
        facts=facts_of(server, user),
        by=by,
        unit=unit,
        units=units,
        bars=bars(totals, by, unit),
        all_runs=len(runs),
        all_spent={name: sum(run.get(name, 0.0) for run in runs) for name in units},
    )


def facts_of(server: Context, user: User) -> dict[str, dict[str, Any]]:
    """Facts about a study that the queue's cards lack: {needs, since, host, mine}."""
    state = server.service.journal.state
    hosts = {runner.study: runner.owner.get("host", "") for runner in list(state.runners.values())}
    return {
        study.name: {
            "needs": study.needs,
            "since": study.since,
            "host": hosts.get(study.name, ""),
            "mine": accounts.may(user, "run") and (study.owner == user.name or user.role == "admin"),
        }
        for study in list(state.studies.values())
        if study.state in ("queued", "starting", "running", "stopping")
    }


def bars(totals: Sequence[Mapping[str, Any]], by: str, unit: str) -> list[dict[str, Any]]:
    """Bars of what was spent: {label, amount, share of the longest, runs}.

    Weeks come in order, those without a run between them; users and studies by what they spent.
    """
    found = {total[by]: (total.get(unit, 0.0), total["runs"]) for total in totals}
    if by == "week":
        rows = [(week, *found.get(week, (0.0, 0))) for week in weeks(found)][-MOST_BARS:]
    else:
        ordered = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
        rows = [(name, *values) for name, values in ordered[:MOST_BARS]]
        if others := [values for _, values in ordered[MOST_BARS:]]:
            amounts, runs = zip(*others, strict=True)
            rows.append((f"{len(others)} others", sum(amounts), sum(runs)))
    longest = max((amount for _, amount, _ in rows), default=0.0) or 1.0
    return [{"label": n, "amount": a, "share": max(0.0, a / longest), "runs": r} for n, a, r in rows]


def weeks(found: Mapping[str, Any]) -> list[str]:
    """All ISO weeks, such as "2026-W09", from the first to the last of these, at most MOST_BARS.

    >>> weeks({"2026-W52": 0, "2027-W01": 0})
    ['2026-W52', '2026-W53', '2027-W01']
    """
    if not found:
        return []
    first, last = (date.fromisoformat(f"{week}-1") for week in (min(found), max(found)))
    count = min(MOST_BARS, (last - first).days // 7 + 1)
    days = [last - timedelta(weeks=i) for i in range(count)]
    return [day.strftime("%G-W%V") for day in reversed(days)]


# -- users, and the API ----------------------------------------------------------------------------


@router.get("/users")
def users(request: Request, server: Server, user: Admin) -> Response:
    """Users, their roles and limits; for admins."""
    people = sorted(list_users(server.service), key=lambda person: person["name"].lower())
    return rendering.page(request, "users.html.j2", user, users=people, roles=ROLES)


@router.get("/docs")
def docs(request: Request, server: Server, user: Viewer) -> Response:
    """The API: every request with its parameters, an example for the shell and one in Python."""
    described = request.app.openapi()
    base = str(request.base_url).rstrip("/")
    return rendering.page(
        request, "docs.html.j2", user, sections=sections(described, base), about=described["info"], base=base
    )
