"""The pages: the list of studies, the cluster and what was spent, the users, and the API's description."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from dgg_ray.service import rendering
from dgg_ray.service.context import Server, Viewer

router = APIRouter(include_in_schema=False)


@router.get("/")
def studies(request: Request, server: Server, user: Viewer) -> Response:
    """The front page: all studies."""
    return rendering.page(request, "studies.html.j2", user, cards=server.service.cards())
