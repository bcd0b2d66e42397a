"""The server: the service over HTTP, and its pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response

import dgg_ray
from dgg_ray.service import (
    api_admin,
    api_results,
    api_studies,
    assets,
    pages,
    pages_new,
    pages_study,
    sign_in,
)
from dgg_ray.service.context import Context, ResultsReader
from dgg_ray.service.responses import add_handlers, problem
from dgg_ray.service.security import Access, Guard
from dgg_ray.service.service import Service
from dgg_ray.service.stream import Broadcast

ABOUT = (
    "Launch, watch, compare and steer studies. Errors are application/problem+json; lists come page by page; "
    "answers carry an ETag."
)


def make_app(service: Service, reader: ResultsReader, access: Access, hosts: Sequence[str] = ()) -> FastAPI:
    """Return the application. hosts: names by which the server may be called; empty is any."""
    context = Context(service, reader, access, Broadcast(service))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.look()
        service.start()
        await context.broadcast.start()
        yield
        await context.broadcast.close()
        service.close()
        reader.close()

    app = FastAPI(
        title="dgg_ray",
        version=dgg_ray.__version__,
        description=ABOUT,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # it is below, for who has a token
    )
    app.state.context = context
    add_handlers(app, sign_in.refusal)
    for routes in (api_studies, api_results, api_admin, assets, sign_in, pages, pages_new, pages_study):
        app.include_router(routes.router)
    app.add_middleware(Guard, hosts=tuple(hosts))

    @app.get("/healthz", include_in_schema=False)
    def healthz() -> Response:
        """Tell a load balancer whether the store answers."""
        if service.problem:
            return problem(503, "the store does not answer")
        return Response("ok", media_type="text/plain")

    return app
