"""The pages in a browser: by keyboard alone, while studies change, on a phone, in both colours."""

from __future__ import annotations

import pytest
from pages_samples import SCRIPT, TOKEN, Server

from dgg_ray.service import accounts, rendering
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
