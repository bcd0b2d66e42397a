"""The HTTP API of studies: check, plan, submit, list, steer, and what changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from dgg_ray.service.context import Context, Operator, Server, Viewer
from dgg_ray.service.refused import RefusedError
from dgg_ray.service.responses import answer
from dgg_ray.service.state import User

router = APIRouter(prefix="/api/v1", tags=["studies"])

Text = Annotated[str, Field(max_length=2**20, description="The study, as a YAML file has it.")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
LastEvent = Annotated[str, Query(max_length=60, description="Id of the last message that the caller had.")]
Sort = Literal["changed", "name", "state", "owner", "priority", "place"]


class Body(BaseModel):
    """A request's body; what it does not know is a fault."""

    model_config = ConfigDict(extra="forbid")


class Listing(BaseModel):
    """The part of the list of studies that is wanted."""

    state: Annotated[str, Field(max_length=40)] = ""
    owner: Annotated[str, Field(max_length=100)] = ""
    q: Annotated[str, Field(max_length=200, description="Text in the name or the question.")] = ""
    sort: Sort = "changed"
    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    per_page: Annotated[int, Field(ge=1, le=500)] = 50


class StudyText(Body):
    text: Text


class PlanRequest(StudyText):
    detect: Annotated[float, Field(gt=0, le=100, description="A difference to detect, in points.")] | None = (
        None
    )


class Submission(StudyText):
    priority: Annotated[int, Field(ge=-(10**6), le=10**6)] = 0


class Resumption(Body):
    text: Text | None = None


class Priority(Body):
    priority: Annotated[int, Field(ge=-(10**6), le=10**6)]


class Clone(Body):
    name: Name
    changes: Annotated[dict[str, Any], Field(max_length=100, description="Dotted path → value.")] = Field(
        default_factory=dict
    )
    priority: Annotated[int, Field(ge=-(10**6), le=10**6)] = 0


class Extension(Body):
    tasks: Annotated[
        dict[Name, Annotated[str, Field(min_length=1, max_length=2000)]],
        Field(min_length=1, max_length=20, description="Name → folder, train file, or reader without files."),
    ]
    reader: Annotated[str, Field(max_length=200, description="Of the tasks' files.")] = "llava"
    name: Name | None = None
    priority: Annotated[int, Field(ge=-(10**6), le=10**6)] = 0


# -- before submitting -----------------------------------------------------------------------------


@router.post("/validate")
def validate(request: Request, server: Server, user: Viewer, body: StudyText) -> Response:
    """Check a study's text: every fault with its line, and the warnings about its data."""
    return answer(request, server.service.check(body.text))


@router.post("/plan")
def plan(request: Request, server: Server, user: Viewer, body: PlanRequest) -> Response:
    """Predict what a study costs, and what its designs can detect. Nothing is started."""
    return answer(request, server.service.plan(body.text, body.detect))


# -- studies ---------------------------------------------------------------------------------------


@router.get("/studies")
def list_studies(
    request: Request, server: Server, user: Viewer, wanted: Annotated[Listing, Query()]
) -> Response:
    """All studies of the store, page by page."""
    return answer(request, listed(server.service.cards(), wanted))


def listed(cards: Sequence[dict[str, Any]], wanted: Listing) -> dict[str, Any]:
    """A page of the list: {items, total, page, pages}."""
    cards = [card for card in cards if matches(card, wanted.state, wanted.owner, wanted.q)]
    cards.sort(key=lambda card: sort_key(card, wanted.sort))
    first = (wanted.page - 1) * wanted.per_page
    pages = max(1, -(-len(cards) // wanted.per_page))
    items = cards[first : first + wanted.per_page]
    return {"items": items, "total": len(cards), "page": wanted.page, "pages": pages}


def matches(card: dict[str, Any], state: str, owner: str, q: str) -> bool:
    found = state in ("", card["state"]) and owner in ("", card["owner"])
    return found and q.lower() in f"{card['name']} {card['question']}".lower()


def sort_key(card: dict[str, Any], sort: Sort) -> tuple[Any, ...]:
    keys: dict[str, Any] = {
        "changed": -card["changed_at"],
        "priority": -card["priority"],
        "place": card["place"] or float("inf"),
    }
    return keys.get(sort, card.get(sort, "")), card["name"]


@router.post("/studies", status_code=201)
def submit(request: Request, server: Server, user: Operator, body: Submission) -> Response:
    """Put a study into the queue."""
    study = server.service.submit(body.text, user.name, body.priority)
    response = answer(request, server.service.card(study.name), 201)
    response.headers["location"] = f"/api/v1/studies/{study.name}"
    return response


@router.get("/studies/{name}")
def study(request: Request, server: Server, user: Viewer, name: str) -> Response:
    """A study's card, its text, and what was done to it."""
    card = server.service.card(name)
    submitted = server.service.journal.state.studies.get(name)
    history = list(submitted.history) if submitted else []
    return answer(request, card | {"text": server.service.text(name), "history": history})


@router.delete("/studies/{name}", status_code=204)
def delete(server: Server, user: Operator, name: str) -> Response:
    """Forget a study that does not run. Its stages stay until `dgg-ray gc` removes what nobody needs."""
    own(server, user, name)
    server.service.delete(name, user.name)
    return Response(status_code=204)


@router.post("/studies/{name}/stop")
def stop(request: Request, server: Server, user: Operator, name: str) -> Response:
    """End a study as Ctrl-C does, or take it from the queue. Finished stages are kept."""
    own(server, user, name)
    server.service.stop(name, user.name)
    return answer(request, server.service.card(name))


@router.post("/studies/{name}/resume")
def resume(request: Request, server: Server, user: Operator, name: str, body: Resumption) -> Response:
    """Put a study that is over into the queue again, with another text if one is given."""
    own(server, user, name)
    server.service.resume(name, user.name, body.text)
    return answer(request, server.service.card(name))


@router.post("/studies/{name}/priority")
def priority(request: Request, server: Server, user: Operator, name: str, body: Priority) -> Response:
    """Change a study's priority."""
    own(server, user, name)
    server.service.set_priority(name, user.name, body.priority)
    return answer(request, server.service.card(name))


@router.post("/studies/{name}/clone", status_code=201)
def clone(request: Request, server: Server, user: Operator, name: str, body: Clone) -> Response:
    """Submit a study again under another name, with changed settings."""
    study = server.service.clone(name, user.name, body.name, body.changes, body.priority)
    return answer(request, server.service.card(study.name), 201)


@router.post("/studies/{name}/extend", status_code=201)
def extend(request: Request, server: Server, user: Operator, name: str, body: Extension) -> Response:
    """Submit a study under another name with more tasks after its own, which alone are trained."""
    study = server.service.extend(name, user.name, body.tasks, body.reader, body.name, body.priority)
    return answer(request, server.service.card(study.name), 201)


# -- decisions about a running study ---------------------------------------------------------------


class Branch(Body):
    values: Annotated[dict[str, Any], Field(max_length=100, description="What the branch shares, by path.")]


class Limits(Body):
    limits: Annotated[dict[str, float], Field(max_length=10, description="As in the study's `budget`.")]


@router.get("/studies/{name}/decisions")
def decisions(request: Request, server: Server, user: Viewer, name: str) -> Response:
    """The decisions of people about the study while it ran: who, when, and what."""
    return answer(request, {"items": server.service.decisions(name)})


@router.post("/studies/{name}/settings/{setting}/{act}", status_code=201)
def decide_about_setting(
    request: Request,
    server: Server,
    user: Operator,
    name: str,
    setting: str,
    act: Literal["stop", "pin", "unpin"],
) -> Response:
    """Stop a setting, or pin it: a pinned one is evaluated to the end and stands in the comparison."""
    own(server, user, name)
    kind = {"stop": "stop_setting"}.get(act, act)
    return answer(request, server.service.decide(name, user.name, {"kind": kind, "setting": setting}), 201)


@router.post("/studies/{name}/branches/stop", status_code=201)
def stop_branch(request: Request, server: Server, user: Operator, name: str, body: Branch) -> Response:
    """Stop all settings of the stagewise search that continue from these values."""
    own(server, user, name)
    decision = {"kind": "stop_branch", "values": body.values}
    return answer(request, server.service.decide(name, user.name, decision), 201)


@router.post("/studies/{name}/budget", status_code=201)
def set_budget(request: Request, server: Server, user: Operator, name: str, body: Limits) -> Response:
    """Put other limits in the place of the study's budget, also while it runs."""
    own(server, user, name)
    return answer(
        request, server.service.decide(name, user.name, {"kind": "budget", "limits": body.limits}), 201
    )


def own(server: Context, user: User, name: str) -> None:
    """Refuse what is asked of a study that is not the user's, unless the user is an admin."""
    study = server.service.journal.state.studies.get(name)
    if user.role == "admin" or (study and study.owner == user.name):
        return
    server.service.card(name)  # one that there is not is named as such
    if study is None:
        raise RefusedError(f"{name} was run elsewhere and has no owner here; only an admin may do that", 403)
    raise RefusedError(f"{name} is {study.owner}'s study; only its owner or an admin may do that", 403)


@router.get("/studies/{name}/logs")
def logs(server: Server, user: Viewer, name: str) -> Response:
    """The end of what the study's runs printed."""
    server.service.card(name)
    return Response(server.service.log(name), media_type="text/plain; charset=utf-8")


# -- what changes ----------------------------------------------------------------------------------


@router.get("/events")
def events(request: Request, server: Server, user: Viewer, last: LastEvent = "") -> Response:
    """Changes of all studies, as server-sent events: `study`, `gone` and `reset` (stream.py)."""
    return event_stream(request, server, user, "", last)


@router.get("/studies/{name}/events")
def study_events(request: Request, server: Server, user: Viewer, name: str, last: LastEvent = "") -> Response:
    """Changes of one study, as server-sent events."""
    server.service.card(name)
    return event_stream(request, server, user, name, last)


def event_stream(request: Request, server: Context, user: User, study: str, last: str) -> Response:
    last = request.headers.get("last-event-id", "") or last
    server.access.check_streams(user)  # now, so that a refusal is an answer

    async def messages() -> AsyncIterator[bytes]:
        with server.access.stream(user):
            async for message in server.broadcast.follow(last, study):
                yield message

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(messages(), media_type="text/event-stream", headers=headers)
