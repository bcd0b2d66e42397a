"""What the routes share: the service, the reader of results, and who may do what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request

from dgg_ray.service.security import Access
from dgg_ray.service.service import Service
from dgg_ray.service.state import User
from dgg_ray.service.stream import Broadcast


class ResultsReader(Protocol):
    """Answers questions about results, in another process. Raises ResultsError for what there is not."""

    def view(self, name: str, view: str, **parameters: Any) -> bytes:
        """Return a view of a study as JSON."""
        ...

    def file(self, name: str, what: str, **parameters: Any) -> Path:
        """Return a file of a study's results."""
        ...

    def close(self) -> None: ...


@dataclass
class Context:
    """One server."""

    service: Service
    reader: ResultsReader
    access: Access
    broadcast: Broadcast


def context_of(request: Request) -> Context:
    return request.app.state.context


def viewer(request: Request) -> User:
    return context_of(request).access.user(request, "view")


def operator(request: Request) -> User:
    return context_of(request).access.user(request, "run")


def admin(request: Request) -> User:
    return context_of(request).access.user(request, "admin")


Server = Annotated[Context, Depends(context_of)]
Viewer = Annotated[User, Depends(viewer)]
Operator = Annotated[User, Depends(operator)]
Admin = Annotated[User, Depends(admin)]
