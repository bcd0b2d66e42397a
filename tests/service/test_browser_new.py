"""The page on which a study is written, in a browser: what one is told while one types."""

from __future__ import annotations

import pytest
from pages_samples import TOKEN, Server
from server_samples import text

pytestmark = pytest.mark.browser


@pytest.fixture
def server(tmp_path, listen):
    found = Server(tmp_path)
    found.address = listen(found.app)
    return found


@pytest.fixture
def page(watched_page, server):
    """The page, ready to be typed in; it must not complain of anything."""
    page = watched_page(server.address, viewport={"width": 390, "height": 844})
    page.goto(f"{server.address}/login?token={TOKEN}&next=/new")
    page.locator("#strategies").wait_for()  # comes last
    yield page
    expected = ("409", "422")  # what the browser says of an answer that refuses
    assert [t for t in page.complaints if not any(f"status of {code}" in t for code in expected)] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def study(page) -> str:
    return page.locator("#text").input_value()


def write(page, found: str) -> None:
    """Put a study into the editor; a | in it is where the caret goes."""
    caret = found.find("|")
    page.locator("#text").fill(found.replace("|", ""))
    if caret >= 0:
        page.evaluate("c => document.getElementById('text').setSelectionRange(c, c)", caret)


def choices(page) -> list[str]:
    page.locator("#choices").wait_for()
    return page.locator("#choices .name").all_inner_texts()


def verdict(page, words: str) -> None:
    page.locator("#verdict").get_by_text(words, exact=True).wait_for()


def test_keys_and_values_are_suggested_where_they_belong(page):
    write(page, "strategy: {name: dgg, |}")
    page.keyboard.press("Control+Space")
    assert choices(page) == ["buffer", "alpha", "norm", "scale", "gate"]
    page.keyboard.type("ga")
    assert choices(page) == ["gate"]
    page.keyboard.press("Enter")
    assert study(page) == "strategy: {name: dgg, gate: }"
    assert choices(page) == ["bernoulli", "periodic", "always"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    assert study(page) == "strategy: {name: dgg, gate: periodic}"
    assert page.locator("#key-help").inner_text().startswith("strategy.gate On which steps guidance is added")
    page.keyboard.press("Control+z")
    assert "periodic" not in study(page)


def test_a_tasks_keys_follow_its_reader_and_indentation(page):
    write(page, "tasks:\n  - name: a\n    reader: embedded\n    |\ntraining:\n  batch_size: 2\n")
    page.keyboard.press("Control+Space")
    found = choices(page)
    assert found[:4] == ["train", "validation", "test", "seed"]
    assert not {"name", "reader", "images"} & set(found)  # written already, or another reader's
    write(page, "tasks:\n  - name: a\n    reader: embedded\ntraining:\n  batch_size: 2\n  |")
    page.keyboard.type("batch")
    assert choices(page) == ["micro_batch_size"]  # the other one is there already
    page.keyboard.press("Escape")
    assert not page.locator("#choices").is_visible()


def test_a_fault_is_shown_at_its_line_and_mended_with_one_click(page):
    verdict(page, "No faults")
    sound = text()
    broken = sound.replace("trials: 4", "trial: 4").replace("name: dgg", "name: dg")
    write(page, broken)
    verdict(page, "2 faults")
    lines = [i for i, line in enumerate(broken.splitlines(), 1) if "trial:" in line or "name: dg" in line]
    assert page.locator(".gutter .bad").all_inner_texts() == [str(line) for line in lines]
    assert page.locator("pre .wrong").all_inner_texts() == ["dg", "trial"]
    assert page.get_by_role("button", name="Submit").is_disabled()
    page.get_by_role("button", name=f"line {lines[1]}").click()
    selected = "t => document.activeElement.value.slice(t.selectionStart, t.selectionEnd)"
    assert page.locator("#text").evaluate(selected) == "trial"
    page.get_by_role("button", name="Use trials").click()
    verdict(page, "1 fault")
    page.get_by_role("button", name="Use dgg").click()
    verdict(page, "No faults")
    assert study(page) == sound


def test_the_keyboard_is_not_trapped(page):
    page.locator("#text").focus()
    write(page, "|name: a")
    page.keyboard.press("Tab")
    assert study(page) == "  name: a"
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "text"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") != "text"


def test_a_plan_and_a_strategy_are_had_beside_it(page, server):
    write(page, text())
    verdict(page, "No faults")
    page.get_by_label("Difference to detect").fill("none")
    page.get_by_role("button", name="Plan it").click()
    page.locator("#plan").get_by_text("must be a number above 0, and at most 100, got 'none'").wait_for()
    page.get_by_label("Difference to detect").fill("5")
    page.get_by_role("button", name="Plan it").click()
    page.locator("#plan").get_by_text("Orders for 5 points").wait_for()
    page.get_by_label("Find a strategy").fill("ewc")
    row = page.locator("#strategy-list li:visible").filter(has_text="ewc").first
    row.locator("summary").click()
    row.get_by_role("button", name="Use ewc").click()
    assert study(page) == text().replace(
        "strategy: {name: dgg, alpha: 0.2, buffer: 5}", "strategy: {name: ewc}"
    )


def test_a_taken_name_is_refused_at_its_line_and_the_next_one_goes_off(page, server):
    server.submit("small", by="ben")
    write(page, text())
    verdict(page, "No faults")
    page.get_by_role("button", name="Submit").click()
    page.locator("#faults").get_by_text("there is a study 'small' already").wait_for()
    assert page.locator(".gutter .bad").all_inner_texts() == ["1"]
    page.locator("#text").fill(text("other"))
    verdict(page, "No faults")
    page.get_by_label("Priority").fill("2")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/studies/other")
    submitted = server.service.journal.state.studies["other"]
    assert (submitted.text, submitted.priority) == (text("other"), 2)


def test_a_draft_is_offered_again(page):
    first = study(page)
    write(page, text("draft"))
    page.reload()
    assert study(page) == first
    page.get_by_role("button", name="Take it up again").click()
    assert study(page) == text("draft")
    page.locator("#strategies").wait_for()


def test_without_scripts_the_text_fills_its_place_and_is_checked(chromium, server):
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(f"{server.address}/login?token={TOKEN}&next=/new")
    area, around = page.locator("#text").bounding_box(), page.locator("#editor").bounding_box()
    assert around["width"] - area["width"] <= 2  # the border
    page.locator("#text").fill(text().replace("trials", "trial"))
    page.get_by_role("button", name="Check").click()
    page.locator("#faults").get_by_text("search.trial no such setting").wait_for()
    context.close()
