"""The page on which a study is written, as a browser without scripts has it."""

from __future__ import annotations

import re
from html import unescape

import pytest
from fastapi.testclient import TestClient
from pages_samples import SCRIPT, TOKEN, Server
from server_samples import text

from dgg_ray.config import registry
from dgg_ray.service import pages_new, study_templates
from dgg_ray.service.security import csrf_of

FIRST = study_templates.templates()[0]


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path)


@pytest.fixture
def client(server):
    return TestClient(server.app, follow_redirects=False)


@pytest.fixture
def browser(client):
    client.get(f"/login?token={TOKEN}")
    return client


def written(page: str) -> str:
    """The text in the page's editor."""
    return unescape(re.search(r"<textarea[^>]*>\n(.*?)</textarea>", page, re.DOTALL)[1])


def faults(page: str) -> list[str]:
    """The faults that a page lists, as text."""
    items = re.findall(
        r"<li>(.*?)</li>", re.search(r'<ol id="faults".*?</ol>', page, re.DOTALL)[0], re.DOTALL
    )
    return [" ".join(unescape(re.sub("<[^>]*>", " ", item)).split()) for item in items]


def send(client, act: str = "check", study: str = "", token: str = TOKEN, **fields: str):
    return client.post("/new", data={"csrf": csrf_of(token), "text": study, "act": act, **fields})


# -- what it begins with ---------------------------------------------------------------------------


def test_it_begins_with_the_quickstart(browser):
    page = browser.get("/new").text
    assert written(page) == FIRST["text"]
    assert f'<option value="{FIRST["name"]}" selected>' in page


def test_it_begins_with_any_template(browser):
    for template in study_templates.templates():
        assert written(browser.get("/new", params={"template": template["name"]}).text) == template["text"]
    assert browser.get("/new?template=none").status_code == 404


def test_a_template_whose_name_is_taken_gets_a_number(browser, server):
    server.submit(FIRST["name"])
    server.submit(f"{FIRST['name']}-2")
    found = written(browser.get("/new").text)
    expected = re.sub(r"(?m)^name: .*$", f"name: {FIRST['name']}-3", FIRST["text"])
    assert found == expected


def test_it_begins_with_another_studys_text_under_a_free_name(browser, server):
    server.service.submit(text("small") + "# a comment\n", "ana")
    page = browser.get("/new?clone=small").text
    assert written(page) == text("small-2") + "# a comment\n"
    assert 'href="/studies/small"' in page


def test_a_study_goes_on_with_one_more_task(browser, server):
    two = "\n".join(line for line in text().splitlines() if "charts" not in line) + "\n"
    server.service.submit(two, "ana")
    page = browser.get("/new", params={"extend": "small", "task": "charts", "files": "embedded"})
    assert page.status_code == 200
    assert "name: small-charts" in written(page.text)
    assert "{name: charts, reader: embedded, train: 12, validation: 10, test: 10}" in written(page.text)
    taken = browser.get("/new", params={"extend": "small", "task": "digits", "files": "embedded"})
    assert (taken.status_code, written(taken.text)) == (422, two)
    assert "has a task of this name" in faults(taken.text)[0]


def test_an_unknown_study_cannot_be_cloned(browser):
    response = browser.get("/new?clone=smal")
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/html")


# -- checking, planning, submitting ----------------------------------------------------------------


def test_every_fault_is_shown_at_its_line(browser):
    study = text().replace("name: small", "nme: small").replace("trials:", "trial:")
    lines = {
        word: next(i for i, line in enumerate(study.splitlines(), 1) if word in line)
        for word in ("nme", "trial:")
    }
    response = send(browser, study=study)
    assert response.status_code == 200
    assert written(response.text) == study
    found = faults(response.text)
    assert f"line {lines['nme']} nme no such setting. Did you mean name ?" in found
    assert f"line {lines['trial:']} search.trial no such setting. Did you mean trials ?" in found
    assert "study name is required" in found


def test_a_text_without_faults_is_said_to_have_none(browser):
    page = send(browser, study=text().replace("\n", "\r\n")).text  # as forms send lines
    assert faults(page) == []
    assert "No faults" in page
    assert "\r" not in written(page)


def test_a_study_is_planned(browser, server):
    page = send(browser, "plan", text(), detect="5").text
    plan = server.service.plan(text(), 5.0)
    assert f"<dt>Stages to train</dt><dd>{'' if plan['exact'] else '≈ '}{plan['to_train']}</dd>" in page
    assert "unknown <small>until profiled</small>" in page
    assert "Orders for 5 points" in page
    assert server.service.journal.state.studies == {}


@pytest.mark.parametrize("detect", ["0", "101", "five", "nan", "1e2"])
def test_a_difference_that_cannot_be_is_a_fault(browser, detect):
    response = send(browser, "plan", text(), detect=detect)
    assert response.status_code == 422
    assert faults(response.text) == [f"form detect must be a number above 0, and at most 100, got {detect!r}"]


def test_a_study_is_submitted(browser, server):
    response = send(browser, "submit", text(), priority="-3")
    assert (response.status_code, response.headers["location"]) == (303, "/studies/small")
    study = server.service.journal.state.studies["small"]
    assert (study.text, study.priority, study.owner) == (text(), -3, "local")


@pytest.mark.parametrize(
    ("study", "priority"), [(text().replace("trials", "trial"), "0"), (text(), "much"), (text(), "1.5")]
)
def test_a_study_with_faults_is_not_submitted(browser, server, study, priority):
    response = send(browser, "submit", study, priority=priority)
    assert response.status_code == 422
    assert len(faults(response.text)) == 1
    assert written(response.text) == study
    assert server.service.journal.state.studies == {}


def test_a_taken_name_is_refused_at_its_line(browser, server):
    server.submit("small", by="ben")
    study = "# mine\n" + text()
    response = send(browser, "submit", study)
    assert response.status_code == 409
    [fault] = faults(response.text)
    assert fault.startswith("line 2 name there is a study 'small' already, of ben")


def test_another_study_of_the_store_with_the_name_is_a_fault_at_its_line(browser, server):
    stored = {"content": {"raw": {"name": "small", "seeds": [7]}}}
    server.service.store.put_document(registry.document_name("small", registry.STUDY), stored)
    page = send(browser, study="# mine\n" + text()).text
    assert [fault.split(" ")[:3] for fault in faults(page)] == [["line", "2", "name"]]


# -- who may, and what comes in --------------------------------------------------------------------


@pytest.mark.parametrize("csrf", ["", "guess", csrf_of("another token")])
@pytest.mark.parametrize("act", ["check", "plan", "submit"])
def test_a_form_needs_the_pages_csrf_token(browser, server, act, csrf):
    assert browser.post("/new", data={"csrf": csrf, "text": text(), "act": act}).status_code == 403
    assert server.service.journal.state.studies == {}


def test_who_may_only_look_checks_and_does_not_submit(client, server):
    token = server.add_user("vic", "view")
    client.get(f"/login?token={token}")
    assert 'value="submit"' not in client.get("/new").text
    assert send(client, study=text(), token=token).status_code == 200
    assert send(client, "submit", text(), token).status_code == 403
    assert server.service.journal.state.studies == {}


def test_who_has_not_logged_in_is_sent_to_the_login(client):
    assert client.get("/new").headers["location"].startswith("/login")
    assert send(client, study=text()).status_code == 303


def test_what_comes_in_stays_text(browser, server):
    study = f"</textarea>{SCRIPT}: 1\n{text()}"
    page = send(browser, study=study, priority=f'">{SCRIPT}').text
    assert SCRIPT not in page
    assert written(page) == study
    server.submit(SCRIPT)
    assert SCRIPT not in browser.get("/new", params={"clone": SCRIPT}).text


def test_a_text_that_is_too_long_is_refused(browser, monkeypatch):
    monkeypatch.setattr(pages_new, "LONGEST", 10)
    assert send(browser, study="x" * 11).status_code == 413
