"""Requests of every shape against every route: no 5xx, no hang, errors in one form.

The requests are made from the API's own description. `DGG_RAY_FUZZ` sets how many are tried of each route.
"""

from __future__ import annotations

import os

import pytest
from server_samples import NotedReader, make_service, text

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from dgg_ray.service import accounts  # noqa: E402
from dgg_ray.service.app import make_app  # noqa: E402
from dgg_ray.service.security import Access, Buckets  # noqa: E402

REQUEST = ("method", "url", "params", "json", "data", "content", "headers")
TRIES = int(os.environ.get("DGG_RAY_FUZZ", "15"))
pytestmark = [pytest.mark.whole, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    service = make_service(tmp_path_factory.mktemp("fuzz"))
    service.start = lambda: None  # nothing is launched
    access = Access(service.journal)
    access.requests = access.wrong = Buckets(1e9, 1e9)
    token = accounts.add_user(service.journal, "ada", "admin", "test")
    service.submit(text(), "ada")
    app = make_app(service, NotedReader(), access)
    with TestClient(app, raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {token}"
        yield schemathesis.openapi.from_dict(app.openapi()), client


def operations(api):
    schema, _ = api
    found = [result.ok() for result in schema.get_all_operations()]
    return [operation for operation in found if not operation.path.endswith("events")]  # these never end


def test_no_request_breaks_the_server(api):
    _, client = api
    tried = [ask_all(client, operation) for operation in operations(api)]
    print(f"{sum(tried)} requests of {len(tried)} operations")
    assert sum(tried) >= 20 * min(TRIES, 5)


def ask_all(client, operation) -> int:
    """Make TRIES requests of an operation; return how many were made."""
    tried = []

    @settings(
        max_examples=TRIES,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(case=operation.as_strategy())
    def ask(case):
        tried.append(case)
        options = case.as_transport_kwargs(base_url="http://testserver")
        answer = client.request(**{key: value for key, value in options.items() if key in REQUEST})
        assert answer.status_code < 500, (operation.label, answer.status_code, answer.text[:300])
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json", operation.label

    ask()
    return len(tried)
