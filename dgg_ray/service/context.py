"""The context that the routes share: the service, the reader of results, and the users' rights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request

from dgg_ray.service.security import Access
from dgg_ray.service.service import Service
from dgg_ray.service.state import User
from dgg_ray.service.stream import Broadcast


class ResultsReader(Protocol):
    """The part of a `Reader` (reader.py) that routes use. Raises ResultsError for what there is not."""

    def view(self, study: str, view: str, /, **params: Any) -> bytes: ...
    def file(self, study: str, what: str, /, **params: Any) -> Path: ...
    def picture(self, study: str, task: str, id: str, split: str = "") -> tuple[bytes, str]: ...
    def compare(self, subjects: Sequence[tuple[str, str]]) -> bytes: ...
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
