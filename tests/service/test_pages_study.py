"""The pages of one study, of its examples, and of studies side by side, made from real views."""

from __future__ import annotations

import re
import threading
import time

import pytest
from server_samples import NotedReader, text
from service_samples import run, sample
from starlette.testclient import TestClient

import dgg_ray
from dgg_ray import load_study
from dgg_ray.analysis.examples import MIN_SCORE_DROP
from dgg_ray.core.errors import ResultsError
from dgg_ray.planning import study_control
from dgg_ray.service import accounts, pages_study, rendering, views
from dgg_ray.service.app import make_app
from dgg_ray.service.security import COOKIE, Access
from dgg_ray.service.state import User
from dgg_ray.service.views import compare, view
from dgg_ray.storage.stage_store import open_store

pytestmark = pytest.mark.whole


class Here(NotedReader):
    """Reads results in this process."""

    def __init__(self):
        self.outcomes = {}

    def view(self, study, name, /, **params):
        if study not in self.outcomes:
            raise ResultsError(f"no results of {study}")
        return view(self.outcomes[study], name, params)

    def compare(self, subjects):
        return compare([(self.outcomes[study], setting) for study, setting in subjects])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """A finished study, one with a half of its stages, and one that is named like an attack."""
    folder = tmp_path_factory.mktemp("outcomes")
    store = str(folder / "store")
    found = {}
    for name, items in (("toy", None), ("half", 5)):
        study = load_study({**raw(name), "output": {"store": store}})
        found[name] = run(study, folder / name, items)
    return store, found


def raw(name):
    return {**sample().file.content, "name": name, "question": "<script>alert(1)</script>"}


@pytest.fixture
def client(outcomes, make, monkeypatch, tmp_path):
    store, found = outcomes
    (tmp_path / "store").symlink_to(store, target_is_directory=True)
    service = make()
    monkeypatch.setattr(type(service), "start", lambda self: None)
    reader = Here()
    reader.outcomes = found
    tokens = {n: accounts.add_user(service.journal, n, r, "t") for n, r in (("ron", "run"), ("vic", "view"))}
    app = make_app(service, reader, Access(service.journal))
    with TestClient(app) as client:
        client.service, client.tokens = service, tokens
        client.cookies.set(COOKIE, tokens["vic"])
        yield client
    for document, _ in list(service.store.list_documents("service/")):
        service.store.remove_document(document)


@pytest.mark.parametrize("tab", pages_study.TABS)
@pytest.mark.parametrize("name", ["toy", "half"])
def test_every_part_of_a_study_is_a_page(client, name, tab):
    page = client.get(f"/studies/{name}?tab={tab}")
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert f'aria-current="page">{pages_study.TABS[tab]}</a>' in page.text
    assert not re.search(r"\sstyle=|\son\w+=|javascript:", page.text)  # the policy would refuse them


def test_the_page_says_the_answer_and_every_compared_method(client, outcomes):
    page = client.get("/studies/toy").text
    summary = views.findings.summary(outcomes[1]["toy"])
    for sentence in summary["answer"]:
        assert sentence.replace("'", "&#39;") in page
    for row in views.findings.comparison(outcomes[1]["toy"])["rows"]:
        score = row["metrics"]["faa"]["score"]
        assert f"<b>{100 * score:.1f}</b>" in page
        assert row["label"] in page


def test_matrices_show_the_scores_of_the_view(client, outcomes):
    page = client.get("/studies/toy?tab=matrices").text
    mean = views.scores.matrices(outcomes[1]["toy"])["means"][0]
    assert f">{100 * float(mean['R'][0][0]):.1f}</td>" in page


def test_a_study_that_waits_has_a_page_and_its_owner_may_steer_it(client):
    client.service.submit(text("waits"), "ron")
    page = client.get("/studies/waits").text
    assert "There are no results yet" in page
    assert 'data-url="/api/v1/studies/waits/stop"' not in page
    client.cookies.set(COOKIE, client.tokens["ron"])
    page = client.get("/studies/waits").text
    assert 'data-url="/api/v1/studies/waits/stop"' in page
    assert "starts now" in page
    client.service.stop("waits", "ron")
    page = client.get("/studies/waits?tab=history").text
    assert 'data-url="/api/v1/studies/waits/resume"' in page
    assert "stop asked" in page


def test_what_is_being_read_is_said_and_asked_for_again(client, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(pages_study, "WAIT_S", 0.05)
    monkeypatch.setattr(Here, "view", lambda self, *a, **k: release.wait(10) and b"{}")
    try:
        page = client.get("/studies/toy").text
        assert "The results are being read" in page
        assert "data-reading" in page
    finally:
        release.set()


def test_readers_of_one_slow_view_wait_for_one_reading(monkeypatch):
    monkeypatch.setattr(pages_study, "WAIT_S", 0.01)
    release, asked = threading.Event(), []

    def slow(study, view, **parameters):
        asked.append((study, view, parameters))
        assert release.wait(10)
        return b'"read"'

    def get(*about, **parameters):
        views = pages_study.Views()
        return views.get(slow, *about, **parameters), views.pending

    try:
        for _ in range(40):
            assert get("toy", "tree") == (None, True)
        assert get("toy", "matrices", setting="a") == get("toy", "matrices", setting="b") == (None, True)
    finally:
        release.set()
    while pages_study.READINGS.futures:
        time.sleep(0.01)
    each = [("tree", {}), ("matrices", {"setting": "a"}), ("matrices", {"setting": "b"})]
    assert sorted(map(str, asked)) == sorted(str(("toy", *about)) for about in each)
    monkeypatch.setattr(pages_study, "WAIT_S", 10)
    assert get("toy", "tree") == ("read", False)  # whoever asks from now on is answered anew
    assert len(asked) == 4


def test_decisions_are_told_as_the_report_tells_them(client, monkeypatch):
    decisions = [
        {"kind": "stop_setting", "number": 1, "at": 2.0, "by": "ana", "setting": "1a2b3c4d"},
        {"kind": "budget", "number": 2, "at": 3.0, "by": "ana", "limits": {"worker_hours": 3}},
    ]
    monkeypatch.setattr(type(client.service), "decisions", lambda self, name: decisions)
    page = client.get("/studies/toy?tab=history").text
    assert "stopped setting 1a2b3c4d" in page
    assert "set the budget to 3 worker-hours" in page


def test_everybody_is_offered_what_the_api_lets_them_do():
    def offered(role, state, owner="ann", here=True):
        card = {"submitted_here": here, "owner": owner if here else "", "state": state}
        return pages_study.actions_of(card, User("ann", role, "", "", {}, 0.0, ""))

    assert offered("view", "running") == set()
    assert offered("run", "running", owner="bob") == {"clone"}
    assert offered("run", "running") == {"clone", "stop", "priority", "decide", "budget"}
    assert offered("run", "queued") == {"clone", "stop", "priority"}
    assert offered("admin", "finished", owner="bob") == {"clone", "resume", "delete", "budget"}
    # What was run elsewhere is an admin's, and is started and stopped there.
    assert offered("run", "running", here=False) == {"clone"}
    assert offered("admin", "running", here=False) == {"clone", "decide", "budget"}
    assert offered("admin", "silent", here=False) == {"clone", "delete"}


def test_an_unknown_study_is_named_with_the_nearest(client):
    page = client.get("/studies/toi", headers={"accept": "text/html"})
    assert page.status_code == 404
    assert "Did you mean" in page.text


def test_examples_say_why_there_are_none(client):
    page = client.get("/studies/toy/examples?filter=all").text
    assert "the simulated engine makes none" in page
    assert client.get("/studies/toy/examples?filter=nothing").status_code == 422


def test_a_page_of_examples_and_the_api_take_the_same_query(client, monkeypatch):
    asked = []
    monkeypatch.setattr(Here, "view", lambda self, study, view, /, **query: asked.append(query) or b"null")
    form = "task=words&setting=&other_setting=replay&split=test&stage=&filter=wrong&page=2"
    for address in ("/studies/toy/examples", "/api/v1/studies/toy/examples"):
        assert client.get(f"{address}?{form}").status_code == 200
        assert client.get(f"{address}?stage=0").status_code == 200
        for wrong in ("stage=first", "stage=-1", "split=tests", "page=0", "filter=right"):
            assert client.get(f"{address}?{wrong}").status_code == 422, wrong
    wanted = {"task": "words", "setting": "", "other_setting": "replay", "split": "test", "filter": "wrong"}
    assert asked[0] == wanted | {"stage": None, "page": 2}
    assert asked[2] == asked[0] | {"per_page": 20}
    assert asked[1]["stage"] == asked[3]["stage"] == 0
    for most, status in ((200, 200), (201, 422)):
        assert client.get(f"/api/v1/studies/toy/examples?per_page={most}").status_code == status


def test_studies_are_compared_on_shared_blocks(client):
    page = client.get("/compare?subject=toy&subject=toy:replay").text
    assert "toy: replay" in page
    assert "Below each: this one minus toy" in page
    for nothing in ("", "?subject=", "?subject=&subject="):
        assert "Choose what to compare" in client.get(f"/compare{nothing}").text
    assert client.get("/compare?subject=toy&subject=toy:replay&subject=").text == page
    assert "At most 8" in client.get("/compare?" + "&".join(f"subject=s{i}" for i in range(9))).text
    assert "there is no study" in client.get("/compare?subject=toy&subject=nobody").text


# -- steering --------------------------------------------------------------------------------------


def rendered(template, **values):
    """A part of the page as the page's template includes it."""
    usual = {"actions": set(), "url": "/api/v1/studies/x", "card": {"state": "running"}, "most": 200}
    usual |= {"summary": {"next_steps": []}, "pinned": (), "stopped": ()}
    return rendering.environment().get_template(f"study_{template}.html.j2").render({**usual, **values})


def test_settings_are_pinned_and_stopped_by_buttons_that_name_them(outcomes):
    found = {"search": None, "settings": views.findings.settings(outcomes[1]["toy"])}
    first, second = (row["setting"] for row in found["settings"]["rows"][:2])
    page = rendered("search", views=found, actions={"decide"}, pinned={first: None}, stopped={second: None})
    labels = re.findall(r'aria-label="([^"]*setting[^"]*)"', page)
    assert {f"Unpin setting {first}", f"Stop setting {first}", f"Pin setting {second}"} <= set(labels)
    assert {f"Pin setting {first}", f"Stop setting {second}"}.isdisjoint(labels)
    assert f'data-url="/api/v1/studies/x/settings/{first}/unpin"' in page
    assert "setting " not in "".join(re.findall(r'aria-label="([^"]*)"', rendered("search", views=found)))


@pytest.fixture(scope="module")
def searching(tmp_path_factory):
    """A stagewise search: 2 values of α for one task on each of 2 learning rates; 4 stages are there."""
    folder = tmp_path_factory.mktemp("searching")
    space = {"strategy.alpha": {"per_task": [0, 1.0]}, "training.learning_rate": [0.005, 0.01]}
    search = {"method": "stagewise", "space": space, "values_per_task": 2, "global_candidates": 2}
    return run(sample(search=search, output={"store": str(folder / "store")}), folder / "out", 4)


def test_every_open_branch_can_be_stopped_and_is_then_gone(searching):
    branches = views.search_course.search(searching)["branches"]
    assert [(branch["text"], branch["waiting"]) for branch in branches] == [
        ("training.learning_rate = 0.005", 2),
        ("training.learning_rate = 0.005, α for charts = 0", 1),
        ("training.learning_rate = 0.005, α for charts = 1", 1),
        ("training.learning_rate = 0.01", 2),
        ("training.learning_rate = 0.01, α for charts = 0", 1),
        ("training.learning_rate = 0.01, α for charts = 1", 1),
    ]
    store = open_store(searching.archive.store.url)
    for number, stopped in enumerate((1, 3), 1):  # one state, and all of a learning rate
        asked = {"kind": "stop_branch", "values": branches[stopped]["values"]}
        assert study_control.record(store, "toy", asked, by="ada").number == number
    left = views.search_course.search(dgg_ray.open(searching.out))["branches"]
    for number in (1, 2):
        store.remove_document(f"studies/toy/decisions/{number:06}.json")
    assert [(branch["text"], branch["waiting"]) for branch in left] == [
        ("training.learning_rate = 0.005", 1),
        ("training.learning_rate = 0.005, α for charts = 1", 1),
    ]


def test_branches_are_stopped_by_buttons_that_name_them(searching):
    found = {"search": views.search_course.search(searching), "settings": None}
    page = rendered("search", views=found, actions={"decide"})
    assert page.count('data-url="/api/v1/studies/x/branches/stop"') == 6
    assert 'aria-label="Stop the branch with training.learning_rate = 0.01, α for charts = 1"' in page
    assert "{&#34;values&#34;: {&#34;training.learning_rate&#34;: 0.005}}" in page
    assert "branches/stop" not in rendered("search", views=found)


def test_a_finished_search_has_no_open_branch(outcomes):
    assert views.search_course.search(outcomes[1]["toy"])["branches"] == []


@pytest.mark.parametrize(
    ("workers", "budget", "limits"),
    [
        ({}, {"worker_hours": 2.0}, {"worker_hours": 2.0, "disk_gb": None}),
        ({"price_per_hour": 3.0}, None, {"worker_hours": None, "money": None, "disk_gb": None}),
    ],
)
def test_the_budget_has_the_limits_that_the_study_can_have(workers, budget, limits):
    study = sample(workers={"engine": "simulated", **workers}, budget=budget)
    assert views.findings.limits_of(study) == limits


def test_the_budget_is_changed_by_who_may_steer_the_study(client, outcomes):
    for name, offered in (("vic", False), ("ron", False)):  # the study was run elsewhere: it is nobody's
        client.cookies.set(COOKIE, client.tokens[name])
        assert ("data-budget" in client.get("/studies/toy?tab=costs").text) == offered
    user = accounts.user_of(client.service.journal.state, client.tokens["ron"])
    card = {"submitted_here": True, "owner": "ron", "state": "running"}
    assert {"budget", "decide"} <= pages_study.actions_of(card, user)
    assert "budget" in pages_study.actions_of(card | {"state": "finished"}, user)
    assert "budget" not in pages_study.actions_of(card | {"owner": "ana"}, user)


# -- what is said ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tab", "found", "said"),
    [
        ("results", {"comparison": {"rows": []}}, "No method has been compared yet"),
        ("orders", {"orders": {"sentences": [], "tables": {}}}, "Nothing is known about orders yet"),
        ("stages", {"tree": {"nodes": [], "counts": {}, "note": ""}}, "No stage is known yet"),
    ],
)
def test_an_empty_part_says_why_and_what_can_be_done(tab, found, said):
    summary = {"next_steps": [], "details": []}
    assert said in rendered(tab, views=found, summary=summary)
    assert "resume it" not in rendered(tab, views=found, summary=summary)
    assert "resume it" in rendered(tab, views=found, summary=summary, actions={"resume"})


def test_no_part_of_a_half_finished_study_is_blank(client):
    for tab in pages_study.TABS:
        page = client.get(f"/studies/half?tab={tab}").text
        part = page.partition('<div id="tab" class="tab">')[2].partition("</main>")[0]
        assert len(re.sub(r"<[^>]*>|\s", "", part)) > 20, tab


def test_stages_say_how_many_runs_share_them(client, outcomes):
    page = client.get("/studies/toy?tab=stages").text
    nodes = views.stage_tree.tree(outcomes[1]["toy"])["nodes"]
    shared = max(node["shared"] for node in nodes)
    assert 'class="num">Shared by</th>' in page
    assert page.count(f'<td class="num">{shared} runs</td>') == sum(n["shared"] == shared for n in nodes)


def test_forgotten_answers_are_said_to_be_what_the_view_selects(client, monkeypatch):
    page = client.get("/studies/toy/examples").text
    assert f"whose score is now at least {100 * MIN_SCORE_DROP:g} points lower than before" in page
    monkeypatch.setattr(views.answers, "MIN_SCORE_DROP", 0.125)
    assert "at least 12.5 points lower" in client.get("/studies/toy/examples").text


def test_a_second_study_is_asked_for_only_where_none_is_chosen(client):
    assert 'id="second"' in client.get("/compare").text
    one = client.get("/compare?subject=toy").text
    assert 'id="another"' in one
    assert 'id="second"' not in one


def test_no_two_parts_of_a_page_have_one_id_and_every_field_has_a_label(client):
    paths = [f"/studies/toy?tab={tab}" for tab in pages_study.TABS]
    for path in (*paths, "/studies/toy/examples", "/compare", "/compare?subject=toy&subject=toy:replay"):
        page = client.get(path).text
        ids = re.findall(r'\sid="([^"]*)"', page)
        assert len(ids) == len(set(ids)), path
        for field in re.findall(r"<(?:input|select|textarea)\s[^>]*>", page):
            if 'type="hidden"' not in field and 'type="checkbox"' not in field:
                assert f'<label for="{re.search(" id=.([^ >]*). ", field + " ")[1]}"' in page, field
