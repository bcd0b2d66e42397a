"""The HTTP API of users, the queue, spending, and what a study can be made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from dgg_ray.service import accounts, checks, scheduling, study_templates
from dgg_ray.service.api_studies import Body
from dgg_ray.service.context import Admin, Server, Viewer
from dgg_ray.service.responses import answer
from dgg_ray.service.service import Service
from dgg_ray.service.state import User

router = APIRouter(prefix="/api/v1", tags=["service"])

Limits = Annotated[dict[str, float], Field(max_length=10, description="at_once, worker_hours")]


class NewUser(Body):
    name: Annotated[str, Field(max_length=64)]
    role: Annotated[str, Field(max_length=20)] = "run"
    limits: Limits = Field(default_factory=dict)


class UserChanges(Body):
    role: Annotated[str, Field(max_length=20)] | None = None
    limits: Limits | None = None


# -- users -----------------------------------------------------------------------------------------


@router.get("/me")
def me(request: Request, user: Viewer) -> Response:
    """The user to whom the token belongs."""
    return answer(request, shown(user))


@router.get("/users")
def users(request: Request, server: Server, user: Admin) -> Response:
    """All users, without anything of their tokens."""
    return answer(request, {"items": list_users(server.service)})


def list_users(service: Service) -> list[dict[str, Any]]:
    """All users with the worker-hours that they spent."""
    state = service.journal.catch_up(at_once=False)
    return [shown(u) | {"worker_hours": state.spent_by(u.name)} for u in list(state.users.values())]


@router.post("/users", status_code=201)
def add_user(request: Request, server: Server, user: Admin, body: NewUser) -> Response:
    """Add a user. The token in the answer is shown this once."""
    token = accounts.add_user(server.service.journal, body.name, body.role, user.name, body.limits)
    return answer(request, {"name": body.name, "role": body.role, "token": token}, 201)


@router.patch("/users/{name}")
def change_user(request: Request, server: Server, user: Admin, name: str, body: UserChanges) -> Response:
    """Change a user's role or limits."""
    changes = body.model_dump(exclude_none=True)
    accounts.change_user(server.service.journal, name, user.name, **changes)
    return answer(request, shown(server.service.journal.state.users[name]))


@router.delete("/users/{name}", status_code=204)
def remove_user(server: Server, user: Admin, name: str) -> Response:
    """Remove a user; their token is worth nothing from now on, their studies stay."""
    accounts.remove_user(server.service.journal, name, user.name)
    return Response(status_code=204)


@router.post("/users/{name}/token")
def new_token(request: Request, server: Server, user: Admin, name: str) -> Response:
    """Give a user a new token, which is shown this once; the old one is worth nothing from now on."""
    token = accounts.new_token_for(server.service.journal, name, user.name)
    return answer(request, {"name": name, "token": token})


def shown(user: User) -> dict[str, Any]:
    keys = ("name", "role", "limits", "added_at", "added_by")
    return {key: getattr(user, key) for key in keys}


# -- the queue and spending ------------------------------------------------------------------------


@router.get("/queue")
def queue(request: Request, server: Server, user: Viewer) -> Response:
    """The studies that run, and those that wait in the order in which they will start."""
    return answer(request, queue_of(server.service))


def queue_of(service: Service) -> dict[str, Any]:
    """The studies that run, those that wait, and the machines: as the API answers it."""
    places = service.places()
    waiting = sorted(places.values(), key=lambda p: (p.place == 0, p.place))
    state = service.journal.state
    return {
        "running": [service.card(study.name, places) for study in state.active],
        "waiting": [service.card(p.study.name, places) for p in waiting],
        "capacity": vars(service.capacity),
        "used": scheduling.used(state),
        "runners": [vars(found) for found in list(state.runners.values())],
        "problem": service.problem,
    }


GROUPS: dict[str, Callable[[dict[str, Any]], str]] = {
    "user": lambda run: run["user"],
    "study": lambda run: run["study"],
    "week": lambda run: "{}-W{:02}".format(*datetime.fromtimestamp(run["at"], UTC).isocalendar()[:2]),
}


@router.get("/spending")
def spending(
    request: Request, server: Server, user: Viewer, by: Literal["user", "study", "week"] = "user"
) -> Response:
    """Worker-hours, GPU-hours and money of all runs that ended, by user, study or week."""
    return answer(request, {"by": by, "items": totals_of(server.service.spending(), by)})


def totals_of(spending: Iterable[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """The spending of runs, by user, study or week: {BY: its name, runs, unit: amount}, by name."""
    totals: dict[str, dict[str, float]] = {}
    for run in spending:
        total = totals.setdefault(GROUPS[by](run), {"runs": 0})
        total["runs"] += 1
        for unit, amount in run.items():
            if isinstance(amount, int | float) and unit != "at":
                total[unit] = total.get(unit, 0.0) + amount
    return [{by: key, **total} for key, total in sorted(totals.items())]


# -- what a study can be made of -------------------------------------------------------------------


@router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request, user: Viewer) -> Response:
    """The description of this API, in OpenAPI's form."""
    return answer(request, request.app.openapi())


@router.get("/schema")
def schema(request: Request, server: Server, user: Viewer) -> Response:
    """The JSON Schema of a study file."""
    return answer(request, server.service.child.call(checks.schema))


@router.get("/strategies")
def strategies(request: Request, server: Server, user: Viewer) -> Response:
    """The strategies with their parameters, and how well each is known."""
    return answer(request, {"items": server.service.child.call(checks.strategies)})


@router.get("/templates")
def templates(request: Request, server: Server, user: Viewer) -> Response:
    """Studies to begin with: {name, question, text}."""
    return answer(request, {"items": study_templates.templates()})
