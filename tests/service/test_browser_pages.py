"""The pages in a browser: by keyboard alone, while studies change, on a phone, in both colours."""

from __future__ import annotations

import pytest
from pages_samples import SCRIPT, TOKEN, Server
from server_samples import text

from dgg_ray.service import accounts, assets, rendering, runner
from dgg_ray.service.security import HEADERS

pytestmark = pytest.mark.browser

PAGES = (
    *("/", "/?q=nothing", "/new", "/cluster", "/users", "/docs", "/login", "/nowhere"),
    *("/studies/extended", "/studies/extended?tab=history", "/studies/extended/examples", "/compare"),
)
PHONE = {"width": 390, "height": 844}
# The lowest contrast of any text on the page, by WCAG 2: [ratio, the text]
LOWEST_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const channels = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const found = channels(getComputedStyle(e).backgroundColor);
      if (found[3] > 220) return found;
    }
    return [255, 255, 255];
  };
  let lowest = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    if (!text || !element.checkVisibility() || element.closest("[disabled]")) continue;
    const [a, b] = [luminance(channels(getComputedStyle(element).color)), luminance(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, text];
  }
  return lowest;
}"""


@pytest.fixture
def server(tmp_path, listen):
    """A server that listens; its studies are in several states."""
    found = Server(tmp_path)
    for i, name in enumerate(("orders", "ranks", "extended", SCRIPT)):
        found.submit(
            name, question="How much does the result depend on the order of the tasks?", by="ana", gpus=i
        )
    for name in ("orders", "ranks", "extended"):
        found.start(name)
    found.report_progress("orders", left_s=[5400, 3600, 7200], spent=1.25, spent_unit="GPU-hours")
    found.end("ranks", how="failed", message="2 stages failed", spent={"worker-hours": 2.5})
    found.add_user("ana", "admin")
    found.address = listen(found.app)
    return found


@pytest.fixture
def new_page(watched_page, server):
    """Make pages that have logged in."""

    def new_page(**options):
        page = watched_page(server.address, **options)
        page.goto(f"{server.address}/login?token={TOKEN}")
        return page

    return new_page


@pytest.fixture
def page(new_page):
    return new_page()


def focused(page) -> str:
    """Text or label of what has the focus."""
    script = "document.activeElement.ariaLabel || document.activeElement.innerText.trim()"
    return page.evaluate(script).split("\n")[0]


def press_until(page, key: str, name: str, most: int = 40) -> None:
    """Press a key until what has this name has the focus."""
    for _ in range(most):
        if focused(page).startswith(name):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{name} cannot be reached with {key}; the focus is on {focused(page)!r}")


def test_the_address_loses_the_token(page, server):
    assert page.url == f"{server.address}/"


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_every_page_can_be_read_on_a_phone_and_asks_nobody_else_for_anything(new_page, server, colours):
    page = new_page(viewport=PHONE, color_scheme=colours)
    for path in PAGES:
        page.goto(server.address + path)
        page.wait_for_load_state()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
        ratio, text = page.evaluate(LOWEST_CONTRAST)
        assert ratio >= 4.5, (path, text, ratio)
    complaints = [text for text in page.complaints if "404" not in text]  # of the page that is not there
    assert complaints == []


def test_studies_are_compared_by_keyboard_alone(page, server):
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("Enter")
    press_until(page, "Tab", "Select ranks")
    page.keyboard.press("Space")
    page.get_by_text("1 selected; select one more to compare.").wait_for()
    assert page.get_by_role("button", name="Compare", exact=True).is_disabled()
    page.get_by_label("Select orders").focus()
    page.keyboard.press("Space")
    press_until(page, "Tab", "Compare")
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare?**")
    assert sorted(page.url.partition("?")[2].split("&")) == ["subject=orders", "subject=ranks"]


def test_the_menu_opens_and_closes_by_keyboard(page):
    page.keyboard.press("Tab")
    press_until(page, "Tab", "local")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused(page) == "Users"
    page.keyboard.press("Escape")
    assert not page.get_by_role("link", name="Users").is_visible()
    assert focused(page).startswith("local")


def test_a_study_that_ends_is_shown_at_once_and_disturbs_nobody(page, server):
    row = page.locator('tr[data-study="orders"]')
    row.get_by_text("running").wait_for()
    box = row.get_by_role("checkbox")
    box.focus()
    page.keyboard.press("Space")
    page.evaluate("window.mark = 1")
    server.end("orders")
    row.get_by_text("finished").wait_for()
    assert page.evaluate("window.mark") == 1  # the same page, not loaded again
    assert box.is_checked()
    assert focused(page) == "Select orders"


def test_a_new_study_appears_and_a_removed_one_goes(page, server):
    server.submit("arrived")
    page.locator('tr[data-study="arrived"]').wait_for()
    server.event("deleted", study="arrived")
    page.locator('tr[data-study="arrived"]').wait_for(state="detached")


def test_what_cannot_be_undone_is_asked_first(page, server):
    page.goto(f"{server.address}/cluster")
    stop = page.locator('tr[data-key="orders"]').get_by_role("button", name="Stop")
    stop.focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Stop orders?").wait_for()
    assert focused(page) == "Cancel"
    page.keyboard.press("Escape")
    assert focused(page) == "Stop"
    assert server.service.state_of("orders") == "running"
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    page.locator('tr[data-key="orders"]').get_by_text("stopping").wait_for()
    assert server.service.state_of("orders") == "stopping"


def test_a_refusal_is_said_in_words(page, server):
    page.goto(f"{server.address}/users")
    page.get_by_role("button", name="Remove ana").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    page.get_by_role("alert").get_by_text("is the last admin").wait_for()


def test_a_token_is_shown_once(page, server):
    page.goto(f"{server.address}/users")
    page.get_by_role("button", name="Add a user").click()
    page.get_by_label("Name").fill("not a name")
    page.get_by_role("button", name="Add", exact=True).click()
    page.locator("#user-error").get_by_text("must be up to 64 letters").wait_for()
    page.get_by_label("Name").fill("ben")
    page.get_by_label("Studies at once").fill("2")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("dialog", name="Token of ben").wait_for()
    token = page.locator("#token-value").inner_text()
    user = accounts.user_of(server.service.journal.state, token)
    assert (user.name, user.role, user.limits) == ("ben", "run", {"at_once": 2})
    page.get_by_role("button", name="I have it").click()
    page.get_by_role("rowheader", name="ben").wait_for()
    assert token not in page.content()


def test_the_chosen_colours_stay(page, server):
    page.get_by_role("button", name="Colours").click()
    page.get_by_role("button", name="Colours: light").click()
    page.goto(f"{server.address}/cluster")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_plotly_draws_under_the_pages_policy(page, server):
    head = str(rendering.environment().get_template("macros.html.j2").module.plotly())
    policy = {"content-security-policy": HEADERS["content-security-policy"], "content-type": "text/html"}
    body = f"<!doctype html><head>{head}</head><main>"
    page.route("**/chart", lambda route: route.fulfill(body=body, headers=policy))
    page.goto(f"{server.address}/chart")
    page.evaluate("Plotly.newPlot(document.querySelector('main'), [{ x: [1, 2], y: [3, 4] }])")
    assert page.locator("main .scatterlayer").count() == 1
    assert page.evaluate("document.getElementById('plotly.js-style-global').sheet.cssRules.length") > 10
    assert page.complaints == []


# -- the pages of a study --------------------------------------------------------------------------

CURVES = {
    "curves": {
        "learning": [
            {"label": "dgg", "points": [{"tasks": 1, "score": 0.5, "low": 0.25, "high": 0.75}]},
            {"label": "replay", "points": [{"tasks": 1, "score": 0.25, "low": None, "high": None}]},
        ]
    }
}
CHART = """<figure class="chart" data-chart="learning" data-url="/curves"></figure>
<div data-chart-table="learning"></div>"""


def show(page, server, main: str) -> None:
    """Show a page with this main part, the scripts of a study's page and the pages' policy."""
    head = f"""{rendering.environment().get_template("macros.html.j2").module.plotly()}
<link rel="stylesheet" href="{assets.address("study.css")}">
<script type="module" src="{assets.address("study.js")}"></script>"""
    template = """{% extends "base.html.j2" %}
{% block head %}{{ head|safe }}{% endblock %}
{% block main %}{{ main|safe }}{% endblock %}"""
    values = {"me": None, "csrf": "", "theme": "", "path": "/", "last_event": "", "open_to_all": True}
    body = rendering.environment().from_string(template).render(head=head, main=main, **values)
    policy = {"content-security-policy": HEADERS["content-security-policy"], "content-type": "text/html"}
    page.route("**/part", lambda route: route.fulfill(body=body, headers=policy))
    page.goto(f"{server.address}/part")


def test_a_figure_that_cannot_be_fetched_says_so_and_is_tried_again(page, server):
    page.route("**/curves", lambda route: route.fulfill(status=503, json={"detail": "the reader is busy"}))
    show(page, server, CHART)
    page.get_by_text("This figure could not be drawn: the reader is busy").wait_for()
    page.unroute("**/curves")
    page.route("**/curves", lambda route: route.fulfill(json=CURVES))
    press_until(page, "Tab", "Try again")
    page.keyboard.press("Enter")
    page.locator(".scatterlayer .trace").nth(1).wait_for()
    assert page.get_by_text("could not be drawn").count() == 0
    assert page.get_by_role("row", name="dgg 1 50.0 (25.0 to 75.0)").count() == 1
    assert page.get_by_role("row", name="replay 1 25.0").count() == 1


ALPHAS = """<section data-alpha hidden>
<div class="charts" data-chart="alpha" data-url="/curves"></div></section>"""
INSIDE = """() => [...document.querySelectorAll(".chart")].every((chart) => {
  const [own, drawn] = [chart, chart.querySelector(".main-svg")].map((part) => part.getBoundingClientRect());
  return drawn.left >= own.left - 1 && drawn.right <= own.right + 1;
})"""


def test_figures_side_by_side_stay_in_their_places(page, server):
    points = [{"alpha": alpha, "mean": alpha, "low": None, "high": None} for alpha in (0.0, 0.5, 1.0)]
    curves = {"alpha": [{"task": task, "text": "", "points": points} for task in ("a", "b", "c")]}
    page.route("**/curves", lambda route: route.fulfill(json=curves))
    show(page, server, ALPHAS)
    page.locator(".chart .scatterlayer .trace").nth(2).wait_for()
    for width in (None, 700):  # as it was drawn, and in a window that has become smaller
        if width:
            page.set_viewport_size({"width": width, "height": 800})
        for _ in range(50):  # a chart follows its place a moment later
            if inside := page.evaluate(INSIDE):
                break
            page.wait_for_timeout(100)
        assert inside, width


def test_a_figure_takes_the_colours_of_the_page(page, server):
    page.route("**/curves", lambda route: route.fulfill(json=CURVES))
    show(page, server, CHART)
    first = page.locator(".xtick text").first
    first.wait_for()
    ink = "getComputedStyle(document.body).color"
    colours = []
    for name in ("Colours: as the system has them", "Colours: light"):
        page.get_by_role("button", name=name).click()
        colours.append(page.evaluate(ink))
        assert first.evaluate("tick => getComputedStyle(tick).fill") == colours[-1]
    assert colours[0] != colours[1]


def test_rows_without_a_value_come_last_whichever_way_they_are_sorted(page, server):
    cells = [("a", ""), ("b", "-0.5"), ("c", "10"), ("d", "9")]
    rows = "".join(f'<tr><th>{name}</th><td data-value="{value}">–</td></tr>' for name, value in cells)
    heading = '<th></th><th><button class="sort" data-sort="1">Score</button></th>'
    show(page, server, f"<table data-sortable><thead><tr>{heading}</tr></thead><tbody>{rows}</tbody></table>")
    for order in ("c d b a", "b d c a", "c d b a"):
        page.get_by_role("button", name="Score").click()
        assert page.locator("tbody th").all_inner_texts() == order.split()


def test_the_log_shows_what_was_printed_last_though_the_study_is_over(page, server):
    log = runner.log_name("extended")
    server.service.store.put_document(log, {"text": "stage 1"})
    page.goto(f"{server.address}/studies/extended?tab=log")
    page.get_by_text("stage 1").wait_for()
    server.end("extended")
    page.locator("#head[data-over]").wait_for(state="attached")
    server.service.store.put_document(log, {"text": "stage 1\nreport written"})
    page.get_by_text("report written").wait_for()


def test_new_results_are_offered_when_stages_end_and_not_when_the_state_changes(page, server):
    region = '<div id="head" data-live="orders" data-done="3" data-failed="0"></div>'
    show(page, server, f'{region}<p id="fresh" hidden>There are new results</p>')
    tell = """card => document.dispatchEvent(new CustomEvent("study", { detail: card }))"""
    said = page.get_by_text("There are new results")
    for state, done, failed, expected in (
        ("running", 3, 0, False),
        ("finished", 3, 0, False),
        ("running", 3, 1, True),
        ("running", 4, 0, True),
    ):
        page.evaluate(tell, {"state": state, "progress": {"done": done, "failed": failed}})
        assert said.is_visible() == expected, (state, done, failed)
    page.evaluate(tell, {"state": "queued", "progress": None})
    assert said.is_visible()  # what was offered stays


def test_a_budget_is_changed_by_keyboard_and_faults_stand_beside_their_fields(page, server):
    limits = {"worker_hours": 5.0, "disk_gb": None}
    units = {"worker_hours": "worker-hours", "disk_gb": "GB on disk"}
    costs = {"spent": {}, "forecast": {}, "by_part": [], "budget": "", "limits": limits, "units": units}
    values = {"views": {"costs": costs}, "actions": {"budget"}, "url": "/api/v1/studies/x"}
    part = rendering.environment().get_template("study_costs.html.j2")
    main = part.render(**values, card={"state": "running"}, summary={"next_steps": []})
    rule = "must be at least what is spent already, 2"
    fault = {"path": "budget.worker_hours", "rule": rule, "text": rule}
    sent = []

    def answer(route):
        sent.append(route.request.post_data_json)
        route.fulfill(status=422, json={"detail": "1 fault", "faults": [fault]})

    page.route("**/studies/x/budget", answer)
    show(page, server, main)
    page.get_by_role("button", name="Change the budget").click()
    page.get_by_text("Change a limit first.").wait_for()
    hours = page.get_by_label("Worker-hours")
    assert (hours.input_value(), page.get_by_label("GB on disk").input_value()) == ("5", "")
    hours.fill("")
    hours.press("Enter")
    page.get_by_text("needs a number").wait_for()
    hours.fill("1.5")
    hours.press("Enter")
    page.get_by_role("dialog", name="Change the budget?").get_by_text("Worker-hours: 1.5.").wait_for()
    page.keyboard.press("Escape")
    assert sent == []
    hours.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Change the budget").click()
    page.get_by_text(rule).wait_for()
    assert sent == [{"limits": {"worker_hours": 1.5}}]
    assert hours.get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.name") == "worker_hours"
    assert page.locator(f"#{hours.get_attribute('aria-describedby')}").inner_text() == rule


def test_a_study_is_written_where_the_browser_keeps_nothing(page, server):
    refuse = "get() { throw new DOMException('no', 'SecurityError'); }"
    page.add_init_script(f"Object.defineProperty(window, 'localStorage', {{ {refuse} }})")
    page.goto(f"{server.address}/new")
    page.locator("#strategies").wait_for()
    page.get_by_label("Study, in YAML").fill(text("private"))
    page.get_by_role("heading", name="No faults").wait_for()
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/studies/private")
    assert server.service.state_of("private") == "queued"
    assert page.complaints == []


def test_the_verdict_is_busy_while_a_check_runs(page, server):
    held = []
    page.route("**/api/v1/validate", lambda route: held.append(route))
    page.goto(f"{server.address}/new")
    busy = page.locator(".verdict[aria-busy=true]")
    busy.wait_for(state="attached")
    page.get_by_label("Study, in YAML").fill("name: other")  # the next check ends the first one
    while len(held) < 2:
        page.wait_for_timeout(50)
    assert busy.count() == 1
    held[1].fulfill(json={"faults": [], "warnings": []})
    busy.wait_for(state="detached")
    page.get_by_role("heading", name="No faults").wait_for()


@pytest.mark.parametrize("width", [390, 1280])
def test_what_is_wider_than_the_page_can_be_scrolled_by_keyboard(new_page, server, width):
    page = new_page(viewport={"width": width, "height": 844})
    cells = "".join(f"<td>{'x' * 12}</td>" for _ in range(8))
    show(page, server, f'<div class="wide-table"><table><tr>{cells}</tr></table></div>')
    table = page.locator(".wide-table")
    page.wait_for_timeout(100)
    assert table.get_attribute("tabindex") == ("0" if width == 390 else None)
