"""The HTTP API: who may do what, errors in one form, pages, ETags, and what changes."""

from __future__ import annotations

import pytest
from server_samples import NotedReader, text
from starlette.testclient import TestClient

from dgg_ray.config import registry
from dgg_ray.service import accounts, security
from dgg_ray.service.app import make_app
from dgg_ray.service.security import Access, Buckets, csrf_of

API = "/api/v1"


@pytest.fixture
def app(service, monkeypatch):
    monkeypatch.setattr(type(service), "start", lambda self: None)  # the tests supervise by themselves
    return make_app(service, NotedReader(), Access(service.journal))


@pytest.fixture
def tokens(service):
    roles = {"ann": "admin", "ron": "run", "rob": "run", "vic": "view"}
    return {name: accounts.add_user(service.journal, name, role, "test") for name, role in roles.items()}


@pytest.fixture
def client(app, tokens):
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
def ask(client, tokens):
    """Ask as a user: (user, method, path, body) → answer."""

    def ask(user, method, path, body=None, **headers):
        own = bearer(tokens[user]) if user else {}
        return client.request(method, API + path, json=body, headers={**own, **headers})

    return ask


# -- who may do what -------------------------------------------------------------------------------


def routes(app):
    """Every route of the API with its methods and the least role, by trial."""
    paths = app.openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


ADMIN = ("/users",)
RUN = {("POST", "/studies"), ("DELETE", "/studies/{name}")}
ACTS = (
    "stop",
    "resume",
    "priority",
    "clone",
    "extend",
    "budget",
    "branches/stop",
    "settings/{setting}/{act}",
)
RUN |= {("POST", f"/studies/{{name}}/{act}") for act in ACTS}


def test_every_route_asks_for_a_token_and_for_its_role(app, ask):
    for method, full in routes(app):
        path = full.removeprefix(API)
        url = path.replace("{name}", "small").replace("{view}", "summary")
        body = {} if method in ("POST", "PATCH") else None
        assert ask(None, method, url, body).status_code == 401, full
        wrong = ask(None, method, url, body, authorization="Bearer dgg-wrong")
        assert wrong.status_code in (401, 429), full
        least = "admin" if path.startswith(ADMIN) else "run" if (method, path) in RUN else "view"
        if least != "view":
            assert ask("vic", method, url, body).status_code == 403, full
        if least == "admin":
            assert ask("ron", method, url, body).status_code == 403, full


def test_an_answer_without_a_token_says_how_to_come_in(ask):
    answer = ask(None, "GET", "/studies")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Bearer" in answer.json()["detail"]


def test_only_the_owner_or_an_admin_steers_a_study(ask):
    ask("ron", "POST", "/studies", {"text": text()})
    for act in ("stop", "resume", "priority"):
        answer = ask("rob", "POST", f"/studies/small/{act}", {"priority": 1} if act == "priority" else {})
        assert (answer.status_code, "ron's study" in answer.json()["detail"]) == (403, True)
    assert ask("rob", "DELETE", "/studies/small").status_code == 403
    assert ask("ann", "POST", "/studies/small/stop").json()["state"] == "stopped"
    assert ask("rob", "POST", "/studies/small/budget", {"limits": {"hours": 4}}).status_code == 403
    clone = ask("rob", "POST", "/studies/small/clone", {"name": "mine", "changes": {"seeds": [4]}})
    assert (clone.status_code, clone.json()["owner"], clone.json()["cloned_from"]) == (201, "rob", "small")


def test_only_an_admin_decides_about_a_study_that_was_run_elsewhere(ask, service):
    study = {"content": {"raw": {"question": "Which one?"}}}
    service.store.put_document(registry.document_name("older", registry.STUDY), study)
    service.listed_at = float("-inf")  # as if the last listing were long ago
    service.look()
    assert ask("rob", "GET", "/studies/older").json()["owner"] == ""
    for act in ("settings/a/stop", "settings/a/pin"):
        answer = ask("rob", "POST", f"/studies/older/{act}", {})
        assert (answer.status_code, "only an admin" in answer.json()["detail"]) == (403, True)
    assert ask("rob", "DELETE", "/studies/older").status_code == 403
    assert ask("rob", "DELETE", "/studies/oldest").status_code == 404
    assert ask("ann", "DELETE", "/studies/older").status_code == 204


def test_the_description_of_the_api_asks_for_a_token_too(ask):
    assert ask(None, "GET", "/openapi.json").status_code == 401
    assert "/api/v1/studies" in ask("vic", "GET", "/openapi.json").json()["paths"]


def test_a_cookie_needs_the_csrf_token_to_change_anything(client, tokens):
    client.cookies.set(security.COOKIE, tokens["ron"])
    assert client.get(f"{API}/studies").status_code == 200
    body = {"text": text()}
    assert client.post(f"{API}/studies", json=body).status_code == 403
    wrong = {"x-csrf-token": csrf_of(tokens["rob"])}
    assert client.post(f"{API}/studies", json=body, headers=wrong).status_code == 403
    right = {"x-csrf-token": csrf_of(tokens["ron"])}
    assert client.post(f"{API}/studies", json=body, headers=right).status_code == 201


def test_an_open_server_takes_nothing_from_another_sites_page(service):
    access = Access(service.journal, open_to_all=True)
    with TestClient(make_app(service, NotedReader(), access)) as client:
        assert client.get(f"{API}/me").json()["name"] == "local"
        body = {"text": text()}
        from_elsewhere = {"sec-fetch-site": "cross-site"}
        assert client.post(f"{API}/validate", json=body, headers=from_elsewhere).status_code == 403
        assert client.post(f"{API}/validate", json=body).status_code == 200


def test_a_server_with_names_answers_to_no_other(service):
    app = make_app(service, NotedReader(), Access(service.journal, open_to_all=True), ["localhost"])
    with TestClient(app, base_url="http://localhost:8750") as client:
        assert client.get(f"{API}/me").status_code == 200
        assert client.get(f"{API}/me", headers={"host": "evil.example:8750"}).status_code == 421


def test_no_answer_holds_a_secret(ask, service, tokens):
    secrets = [*tokens.values(), *(u.salt for u in service.journal.state.users.values())]
    secrets += [u.token_hash for u in service.journal.state.users.values()]
    ask("ron", "POST", "/studies", {"text": text()})
    for path in ("/me", "/users", "/queue", "/spending", "/studies", "/studies/small"):
        found = ask("ann", "GET", path)
        assert found.status_code == 200
        assert not any(secret in found.text for secret in secrets)


def test_a_study_goes_on_with_one_more_task(ask):
    two = "\n".join(line for line in text().splitlines() if "charts" not in line) + "\n"
    ask("ron", "POST", "/studies", {"text": two})
    answer = ask("rob", "POST", "/studies/small/extend", {"tasks": {"charts": "embedded"}})
    assert (answer.status_code, answer.json()["name"], answer.json()["owner"]) == (201, "small-charts", "rob")
    refused = ask("rob", "POST", "/studies/small/extend", {"tasks": {"digits": "embedded"}, "name": "other"})
    assert (refused.status_code, refused.json()["faults"][0]["path"]) == (422, "task digits")


# -- limits ----------------------------------------------------------------------------------------


def test_a_bucket_gives_a_burst_and_then_so_many_a_second(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(security.time, "monotonic", lambda: now[0])
    buckets = Buckets(rate=2.0, burst=3.0)
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b")
    now[0] = 0.5
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]


def test_too_many_requests_and_too_large_bodies_are_refused(app, tokens):
    app.state.context.access.requests = Buckets(0.0, 3.0)
    with TestClient(app) as client:
        answers = [client.get(f"{API}/me", headers=bearer(tokens["vic"])).status_code for _ in range(5)]
        assert answers == [200, 200, 200, 429, 429]
        large = client.post(f"{API}/validate", content=b"x" * (security.MAX_BODY + 1))
        assert (large.status_code, large.headers["content-type"]) == (413, "application/problem+json")

        def pieces():
            for _ in range(30):
                yield b"x" * 100_000

        assert client.post(f"{API}/validate", content=pieces()).status_code == 413


def test_every_answer_carries_the_security_headers(client, ask):
    for answer in (ask("vic", "GET", "/studies"), ask(None, "GET", "/studies"), client.get("/nowhere")):
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


# -- studies ---------------------------------------------------------------------------------------


def test_faults_come_with_their_lines_in_the_form_of_problems(ask):
    broken = text(**{"model: embedded": "model: embeded", "trials: 4": "trials: none"})
    found = ask("vic", "POST", "/validate", {"text": broken}).json()["faults"]
    answer = ask("ron", "POST", "/studies", {"text": broken})
    assert answer.status_code == 422
    assert answer.json()["faults"] == found
    assert [(fault["path"], fault["line"]) for fault in found] == [("model.name", 2), ("search.trials", 14)]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "text"),
        ({"text": 1}, "text"),
        ({"text": "", "priorty": 1}, "priorty"),
        ({"text": "x" * 2**21}, ""),
    ],
)
def test_a_request_that_breaks_rules_is_named_in_the_same_form(ask, body, path):
    answer = ask("ron", "POST", "/studies", body)
    assert answer.headers["content-type"] == "application/problem+json"
    if path:
        assert answer.json()["faults"][0]["path"] == path


def test_lists_come_page_by_page_filtered_and_sorted(ask):
    for i in range(5):
        ask("ron" if i % 2 else "rob", "POST", "/studies", {"text": text(f"s{i}"), "priority": i})
    first = ask("vic", "GET", "/studies?sort=name&per_page=2").json()
    assert ([s["name"] for s in first["items"]], first["total"], first["pages"]) == (["s0", "s1"], 5, 3)
    last = ask("vic", "GET", "/studies?sort=name&per_page=2&page=3").json()
    assert [s["name"] for s in last["items"]] == ["s4"]
    assert [s["name"] for s in ask("vic", "GET", "/studies?owner=ron&sort=priority").json()["items"]] == [
        "s3",
        "s1",
    ]
    assert ask("vic", "GET", "/studies?q=S4").json()["total"] == 1
    assert ask("vic", "GET", "/studies?state=finished").json()["items"] == []
    assert ask("vic", "GET", "/studies?per_page=0").status_code == 422


def test_an_unchanged_answer_is_not_sent_again(ask):
    first = ask("vic", "GET", "/templates")
    again = ask("vic", "GET", "/templates", **{"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_study_is_planned_without_being_started(ask, service):
    answer = ask("vic", "POST", "/plan", {"text": text(), "detect": 5})
    assert answer.json()["distinct"] > 0
    assert answer.json()["text"].startswith("small:")
    assert service.journal.catch_up().studies == {}
    broken = ask("vic", "POST", "/plan", {"text": "name: x"})
    assert (broken.status_code, broken.json()["faults"][0]["path"]) == (422, "model")


def test_unknown_studies_views_and_methods_are_problems(ask):
    ask("ron", "POST", "/studies", {"text": text()})
    for method, path, status in [
        ("GET", "/studies/smal", 404),
        ("GET", "/studies/smal/view/summary", 404),
        ("GET", "/studies/small/view/nothing", 422),
        ("GET", "/studies/small/figures/none.svg", 404),
        ("PUT", "/studies/small", 405),
        ("GET", "/nowhere", 404),
    ]:
        answer = ask("vic", method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


@pytest.mark.parametrize("name", ["..%2f..%2fetc%2fpasswd", "%00", "a%2fb", "..", "%2e%2e", "x" * 300])
def test_no_name_reaches_the_file_system(ask, name):
    for path in (f"/studies/{name}", f"/studies/{name}/logs", f"/studies/{name}/tables/table.csv"):
        assert ask("ann", "GET", path).status_code in (400, 404)


def test_two_to_eight_subjects_are_compared(ask):
    ask("ron", "POST", "/studies", {"text": text()})
    ask("ron", "POST", "/studies", {"text": text("other")})
    answer = ask("vic", "GET", "/compare?subject=small&subject=other:replay")
    assert answer.json() == [["small", ""], ["other", "replay"]]
    assert ask("vic", "GET", "/compare?subject=small").status_code == 422
    assert ask("vic", "GET", "/compare?" + "subject=small&" * 9).status_code == 422
    assert ask("vic", "GET", "/compare?subject=small&subject=nobody").status_code == 404


def test_a_store_that_does_not_answer_is_said_in_the_same_form(ask, service, monkeypatch):
    def fail(*_):
        raise OSError("no route")

    monkeypatch.setattr(type(service.journal.backend), "create", fail)
    answer = ask("ron", "POST", "/studies", {"text": text()})
    assert (answer.status_code, "no route" in answer.json()["detail"]) == (503, True)
    monkeypatch.undo()
    assert service.journal.catch_up().studies == {}  # nothing is half submitted


# -- users, the queue, spending --------------------------------------------------------------------


def test_an_unexpected_error_is_said_in_the_same_form(ask, service, monkeypatch):
    def broken(self):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(type(service), "cards", broken)
    answer = ask("vic", "GET", "/studies")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text


def test_an_admin_manages_users_over_http(ask, client):
    made = ask("ann", "POST", "/users", {"name": "eve", "role": "view", "limits": {"at_once": 2}}).json()
    assert client.get(f"{API}/me", headers=bearer(made["token"])).json()["limits"] == {"at_once": 2}
    assert ask("ann", "PATCH", "/users/eve", {"role": "run"}).json()["role"] == "run"
    again = ask("ann", "POST", "/users/eve/token").json()["token"]
    assert client.get(f"{API}/me", headers=bearer(made["token"])).status_code == 401
    assert client.get(f"{API}/me", headers=bearer(again)).status_code == 200
    assert ask("ann", "DELETE", "/users/eve").status_code == 204
    assert client.get(f"{API}/me", headers=bearer(again)).status_code == 401
    assert ask("ann", "DELETE", "/users/ann").status_code == 422


def test_spending_adds_up_over_runs(ask, service):
    week = 7 * 86_400.0
    for at, user, hours in [(0.0, "a", 1.0), (0.0, "b", 2.0), (week, "a", 4.0)]:
        run = {"at": at, "user": user, "study": f"of {user}", "worker-hours": hours}
        service.journal.state.spending.append(run)
    by_user = ask("vic", "GET", "/spending").json()["items"]
    assert by_user == [
        {"user": "a", "runs": 2, "worker-hours": 5.0},
        {"user": "b", "runs": 1, "worker-hours": 2.0},
    ]
    by_week = ask("vic", "GET", "/spending?by=week").json()["items"]
    assert [(i["week"], i["worker-hours"]) for i in by_week] == [("1970-W01", 3.0), ("1970-W02", 4.0)]


def test_the_queue_says_what_waits_for_what(ask, service):
    for name in "abc":
        ask("ron", "POST", "/studies", {"text": text(name)})
    service.supervise()
    queue = ask("vic", "GET", "/queue").json()
    assert [s["name"] for s in queue["running"]] == ["a", "b"]
    assert [(s["name"], s["place"]) for s in queue["waiting"]] == [("c", 1)]
    assert (queue["capacity"], queue["used"]) == ({"cpus": 2, "gpus": 0.0}, {"cpus": 2})
