"""The pages: who sees them, what they say, and that nothing on them comes from elsewhere."""

from __future__ import annotations

import ast
import inspect
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient
from pages_samples import SCRIPT, TOKEN, Server

from dgg_ray.service import assets, pages, sign_in
from dgg_ray.service.api_reference import CLIENT
from dgg_ray.service.client import Client
from dgg_ray.service.security import COOKIE

PAGES = ("/", "/new", "/cluster", "/users", "/docs", "/studies/a", "/studies/a/examples", "/compare")


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path)


@pytest.fixture
def anybody(server):
    """A browser that has not logged in."""
    return TestClient(server.app, follow_redirects=False)


@pytest.fixture
def browser(anybody):
    """A browser that has logged in."""
    anybody.get(f"/login?token={TOKEN}")
    return anybody


class Elements(HTMLParser):
    """All elements of a page: (tag, attributes)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def named(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag in tags]


# -- logging in ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_a_page_sends_who_has_not_logged_in_to_the_login_and_back(anybody, page):
    response = anybody.get(f"{page}?sort=name")
    assert response.status_code == 303
    form = anybody.get(response.headers["location"])
    assert form.status_code == 200
    [back] = [field for field in Elements(form.text).named("input") if field.get("name") == "next"]
    assert back["value"] == f"{page}?sort=name"


def test_the_api_answers_who_has_not_logged_in_with_a_problem(anybody):
    response = anybody.get("/api/v1/studies")
    assert (response.status_code, response.headers["content-type"]) == (401, "application/problem+json")


def test_a_link_with_a_token_logs_in_and_leaves_the_address(anybody):
    response = anybody.get(f"/login?token={TOKEN}&next=/cluster")
    assert (response.status_code, response.headers["location"]) == (303, "/cluster")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    assert anybody.get("/cluster").status_code == 200


def test_the_cookie_is_secure_where_the_connection_is(server):
    client = TestClient(server.app, base_url="https://studies.example", follow_redirects=False)
    assert "Secure" in client.get(f"/login?token={TOKEN}").headers["set-cookie"]


def test_the_form_logs_in(anybody):
    response = anybody.post("/login", data={"token": f" {TOKEN} ", "next": "/docs"})
    assert (response.status_code, response.headers["location"]) == (303, "/docs")
    assert anybody.get("/docs").status_code == 200


def test_a_wrong_token_is_said_to_be_wrong_and_sets_no_cookie(anybody):
    response = anybody.post("/login", data={"token": "guess"})
    assert response.status_code == 401
    assert sign_in.WRONG in response.text
    assert "set-cookie" not in response.headers


def test_guessing_tokens_is_slowed_down(anybody):
    answers = [anybody.post("/login", data={"token": f"guess {i}"}).status_code for i in range(12)]
    assert answers[0] == 401
    assert answers[-1] == 429


def test_another_site_cannot_log_somebody_in_or_out(browser):
    elsewhere = {"sec-fetch-site": "cross-site"}
    assert browser.post("/login", data={"token": TOKEN}, headers=elsewhere).status_code == 403
    assert browser.post("/logout", headers=elsewhere).status_code == 403
    assert browser.get("/").status_code == 200


def test_logging_out_takes_the_cookie_away(browser):
    assert browser.post("/logout").headers["location"] == "/login"
    assert COOKIE not in browser.cookies
    assert browser.get("/").status_code == 303


def test_a_link_from_another_site_is_asked_for_once_more(anybody):
    # The browser keeps a strict cookie back on such a request, and sends it on the one that follows.
    response = anybody.get("/cluster?by=week", headers={"sec-fetch-site": "cross-site"})
    assert response.status_code == 200
    assert 'content="0; url=/cluster?by=week"' in response.text


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("/studies/a?tab=costs#x", "/studies/a?tab=costs#x"),
        ("", "/"),
        ("//elsewhere.example/", "/"),
        ("/\\elsewhere.example", "/"),
        ("https://elsewhere.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nset-cookie: a=b", "/"),
        ("/\t/elsewhere.example", "/"),
        ("studies", "/"),
    ],
)
def test_the_way_back_after_the_login_is_an_address_of_this_server(anybody, address, place):
    response = anybody.post("/login", data={"token": TOKEN, "next": address})
    assert response.headers["location"] == place


def test_an_open_server_asks_for_no_login(tmp_path):
    client = TestClient(Server(tmp_path, open_to_all=True).app, follow_redirects=False)
    page = client.get("/").text
    assert "/logout" not in page
    assert client.get("/login?next=/cluster").headers["location"] == "/cluster"


# -- roles and requests that change something ------------------------------------------------------


def test_only_an_admin_sees_the_users(server, anybody):
    anybody.get(f"/login?token={server.add_user('ben', 'run')}")
    response = anybody.get("/users")
    assert response.status_code == 403
    assert response.headers["content-type"].startswith("text/html")
    assert "needs the role admin; ben has run" in response.text.lower()
    assert 'href="/users"' not in anybody.get("/").text


def test_who_may_only_look_is_offered_no_button_that_starts_something(server, anybody):
    anybody.get(f"/login?token={server.add_user('chiara', 'view')}")
    page = anybody.get("/").text
    assert "No studies yet" in page
    assert "data-url" not in page
    assert 'class="button primary" href="/new"' not in page


def test_a_page_carries_the_token_that_requests_need(server, browser):
    server.submit("a")
    [csrf] = [
        m["content"] for m in Elements(browser.get("/").text).named("meta") if m.get("name") == "csrf-token"
    ]
    assert browser.post("/api/v1/studies/a/stop").status_code == 403
    assert browser.post("/api/v1/studies/a/stop", headers={"x-csrf-token": csrf}).status_code == 200


# -- the list of studies ---------------------------------------------------------------------------


def rows(page: str) -> list[str | None]:
    return [row["data-study"] for row in Elements(page).named("tr") if "data-study" in row]


def test_names_and_questions_are_text(server, browser):
    server.submit(SCRIPT, question='"><img src=x onerror=alert(1)>')
    for page in ("/", "/cluster"):
        text = browser.get(page).text
        assert SCRIPT not in text
        assert "<img" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert 'href="/studies/%3Cscript%3Ealert%281%29%3C%2Fscript%3E"' in text


def test_the_list_shows_what_is_known_of_a_study(server, browser):
    server.submit("a", question="Does it help?")
    server.start("a")
    server.report_progress("a", left_s=[5400, 3600, 7200], spent=1.25, spent_unit="GPU-hours")
    text = re.sub(r"<[^>]+>|\s+", " ", browser.get("/").text)
    text = re.sub(r"\s+", " ", text)
    for words in ("Does it help?", "running", "faa 0.746 95 % CI 0.701 to 0.790", "strategy.buffer=30"):
        assert words in text
    assert "3 /12" in text
    assert "1 h 30 min left (1 h to 2 h)" in text
    assert "1.25 GPU-hours" in text


def test_the_list_is_filtered_by_state_owner_and_text(server, browser):
    server.submit("alpha", question="Which rank?", by="ana")
    server.submit("beta", by="ben")
    server.submit("gamma", by="ben")
    server.start("gamma")
    assert rows(browser.get("/?sort=name").text) == ["alpha", "beta", "gamma"]
    assert rows(browser.get("/?state=queued&sort=name").text) == ["alpha", "beta"]
    assert rows(browser.get("/?owner=ben&sort=name").text) == ["beta", "gamma"]
    assert rows(browser.get("/?q=RANK").text) == ["alpha"]
    assert rows(browser.get("/?q=nothing").text) == []
    assert "No study matches" in browser.get("/?q=nothing").text


def test_states_are_counted_among_what_the_other_filters_leave(server, browser):
    for name, by in (("a", "ana"), ("b", "ben"), ("c", "ben")):
        server.submit(name, by=by)
    server.start("c")
    text = re.sub(r"<[^>]+>|\s+", " ", browser.get("/?owner=ben&state=queued").text)
    assert re.search(r"All +2 .*Running +1 .*Queued +1 ", text)


def test_long_lists_come_page_by_page(server, browser):
    for i in range(5):
        server.submit(f"s{i}")
    first = browser.get("/?sort=name&per_page=2").text
    assert rows(first) == ["s0", "s1"]
    assert "Page 1 of 3" in first
    following = next(a["href"] for a in Elements(first).named("a") if a.get("rel") == "next")
    assert rows(browser.get(f"/{following}").text) == ["s2", "s3"]
    assert rows(browser.get("/?sort=name&per_page=2&page=9").text) == ["s4"]  # the last that there is


def test_an_impossible_sort_is_refused_on_a_page(browser):
    response = browser.get("/?sort=colour")
    assert response.status_code == 422
    assert response.headers["content-type"].startswith("text/html")


def test_the_first_page_offers_a_study_to_begin_with(browser):
    [button] = [b for b in Elements(browser.get("/").text).named("button") if "data-url" in b]
    assert (button["data-method"], button["data-url"]) == ("POST", "/api/v1/studies")
    assert "name: quickstart" in (button["data-body"] or "")
    assert button["data-after"] == "/studies/quickstart"


# -- the cluster -----------------------------------------------------------------------------------


def test_the_cluster_shows_what_runs_what_waits_and_why(server, browser):
    server.submit("first", gpus=3)
    server.submit("second", gpus=2)
    server.start("first")
    text = re.sub(r"<[^>]+>|\s+", " ", browser.get("/cluster").text)
    assert "3 of 4" in text
    assert "needs 2 GPUs, 1 are free" in text


def test_spending_is_shown_by_user_study_and_week(server, browser):
    for name, by, hours, at in (("a", "ana", 2.0, 1_767_600_000), ("b", "ben", 6.0, 1_768_809_600)):
        server.submit(name, by=by)
        server.start(name)
        server.end(name, spent={"worker-hours": hours, "money": hours / 2}, at=at)

    def bars(query: str) -> list[tuple[str, str]]:
        table = browser.get(f"/cluster{query}").text.partition('class="bars"')[2]
        return re.findall(r'<th scope="row">([^<]+)</th>.*?<td class="num">([^<]+)</td>', table)

    assert bars("") == [("ben", "6"), ("ana", "2")]
    assert bars("?by=study&unit=money") == [("b", "3"), ("a", "1")]
    # 5 and 19 January 2026 are two weeks apart; nothing was spent between them
    assert bars("?by=week") == [("2026-W02", "2"), ("2026-W03", "0"), ("2026-W04", "6")]


def test_bars_beyond_the_most_are_one_bar_together():
    totals = [
        {"user": f"u{i:02}", "runs": 1, "worker-hours": float(100 - i)} for i in range(pages.MOST_BARS + 2)
    ]
    found = pages.bars(totals, "user", "worker-hours")
    assert len(found) == pages.MOST_BARS + 1
    assert found[-1] == {"label": "2 others", "amount": 60.0 + 59.0, "share": 1.0, "runs": 2}
    assert found[0]["share"] == pytest.approx(100 / 119)


# -- the API's description -------------------------------------------------------------------------


def test_every_request_of_the_api_is_described(server, browser):
    text = browser.get("/docs").text
    described = [e["id"] for e in Elements(text).named("details")]
    operations = [op for methods in server.app.openapi()["paths"].values() for op in methods]
    assert len(described) == len(set(described)) == len(operations)
    assert "curl -X POST" in text


def test_the_python_examples_are_programs_and_call_what_the_client_has(server, browser):
    shown = re.findall(r"<code>((?:import|from) .*?)</code>", browser.get("/docs").text, re.DOTALL)
    calls = []
    for block in map(unescape, shown):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("client."):
                method = getattr(Client, ast.unparse(node.func).removeprefix("client."))
                inspect.signature(method).bind(None, *node.args, **{word.arg: 0 for word in node.keywords})
                calls.append(method.__name__)
    assert len(shown) == len([op for path in server.app.openapi()["paths"].values() for op in path])
    assert len(calls) == len(CLIENT)  # each request that the client knows is one that there is


# -- every page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, "/login", "/there/is/no/such/page"])
def test_a_page_takes_nothing_from_elsewhere_and_holds_no_script_or_style(server, browser, page):
    server.submit("a")
    response = browser.get(page)
    assert "script-src 'self'" in response.headers["content-security-policy"]
    elements = Elements(response.text)
    for tag, attributes in elements.found:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action"):
            address = attributes.get(name) or "/"
            assert address.startswith(("/", "?", "#")), (tag, address)
    assert all(script.get("src") for script in elements.named("script"))
    assert elements.named("style") == []


@pytest.mark.parametrize("page", [*PAGES, "/login", "/there/is/no/such/page"])
def test_a_page_can_be_heard(server, browser, page):
    server.submit("a")
    elements = Elements(browser.get(page).text)
    levels = [int(tag[1]) for tag, attributes in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    labelled = {label["for"] for label in elements.named("label") if "for" in label}
    for field in elements.named("input", "select", "textarea"):
        named = (
            field.get("aria-label") or field.get("id") in labelled or field.get("type") in ("hidden", "radio")
        )
        assert named, field
    identifiers = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for tag in ("main", "header"):
        assert len(elements.named(tag)) == 1


def test_a_page_that_has_not_changed_is_not_sent_again(server, browser):
    server.submit("a")
    response = browser.get("/docs")
    again = browser.get("/docs", headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert response.headers["cache-control"] == "private, no-cache"


def test_a_page_comes_in_the_chosen_colours(browser):
    assert "data-theme=" not in browser.get("/").text.partition(">")[2].partition(">")[0]
    browser.cookies.set("dgg_ray_theme", "dark")
    assert '<html lang="en" data-theme="dark">' in browser.get("/").text
    browser.cookies.set("dgg_ray_theme", '"><script>')
    assert '<html lang="en">' in browser.get("/").text


def test_an_unknown_page_is_a_page_and_an_unknown_request_a_problem(browser):
    page, request = browser.get("/nowhere"), browser.get("/api/v1/nowhere")
    assert page.status_code == request.status_code == 404
    assert "There is no page /nowhere." in page.text
    assert request.headers["content-type"] == "application/problem+json"


# -- files -----------------------------------------------------------------------------------------


def test_a_file_is_kept_for_ever_under_its_hash_and_not_at_all_under_another(anybody):
    response = anybody.get(assets.address("app.css"))
    assert response.headers["content-type"].startswith("text/css")
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    old = anybody.get("/static/0123456789abcdef/app.css")
    assert old.headers["cache-control"] == "no-store"
    assert old.content == response.content


def test_the_hash_changes_with_a_file(tmp_path, monkeypatch):
    before = assets.version()
    (tmp_path / "app.css").write_text("a {}")
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    for function in (assets.files, assets.version):
        monkeypatch.setattr(assets, function.__name__, function.__wrapped__)
    small = assets.version()
    (tmp_path / "app.css").write_text("b {}")
    assert len({before, small, assets.version()}) == 3


def test_plotlys_script_comes_from_the_package_and_compressed(anybody):
    response = anybody.get(assets.address("plotly.min.js"), headers={"accept-encoding": "gzip"})
    assert response.headers["content-encoding"] == "gzip"
    assert b"plotly.js v" in response.content[:200]
    plain = anybody.get(assets.address("plotly.min.js"), headers={"accept-encoding": "identity"})
    assert plain.content == response.content


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fpages.py", "%2e%2e%2fpages.py"])
def test_no_other_file_is_served(anybody, name):
    assert anybody.get(f"/static/{assets.version()}/{name}").status_code == 404


def test_every_module_imports_files_that_there_are():
    for name, file in assets.files().items():
        if name.endswith(".js") and name != assets.PLOTLY:
            for imported in re.findall(r'from "\./([^"]+)"', file.read_text(encoding="utf-8")):
                assert imported in assets.files(), f"{name} imports {imported}"
