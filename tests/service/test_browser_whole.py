"""A person's way through the service in a real browser, from a study with two faults to a loaded adapter."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import zipfile

import psutil
import pytest

pytestmark = pytest.mark.browser
STUDY = """\
name: {name}
question: Which α keeps two small tasks?
model: embedded
tasks:
  - {{name: digits, reader: embedded, train: 12, validation: 10, test: 10}}
  - {{name: words, reader: embedded, train: 12, validation: 10, test: 10}}
strategy: {{name: dgg, alpha: 0.3, buffer: 4}}
adapter: {{rank: 4}}
training: {{epochs: 1, batch_size: 8, learning_rate: 5e-3}}
orders: [[digits, words]]
seeds: [{seed}]
protocol:
  max_new_tokens: 2
  baselines: [finetune]
"""
END_MS = 600_000


@pytest.fixture(scope="module")
def link(tmp_path_factory):
    """A server in a process of its own, as `dgg-ray serve` starts it; the link that it prints."""
    root = tmp_path_factory.mktemp("service")
    command = [sys.executable, "-m", "dgg_ray", "serve", "--root", str(root), "--port", "0", "--cpus", "1"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        yield next(m[0] for line in server.stdout if (m := re.search(r"http\S+/login\?token=\S+", line)))
    finally:
        runners = [
            p for p in psutil.Process(server.pid).children() if "service.runner" in " ".join(p.cmdline())
        ]
        server.terminate()
        server.wait(30)
        server.stdout.close()
        for runner in runners:
            runner.terminate()
        psutil.wait_procs(runners, timeout=60)


@pytest.fixture
def page(link, watched_page):
    page = watched_page(link.split("/login")[0], viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    page.goto(link)
    yield page
    allowed = ("422", "409", "404")  # the browser reports a refusal that the page shows
    assert [text for text in page.complaints if not any(code in text for code in allowed)] == []


def write(page, host, text):
    """Write a study's text on the page for new ones."""
    page.goto(f"{host}/new")
    page.locator("#strategies").wait_for()  # comes last
    page.locator("#text").fill(text)


def submit(page, name):
    page.locator("#verdict").get_by_text("No faults", exact=True).wait_for()
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(f"**/studies/{name}*")


def wait_for_state(page, name, *states):
    """Wait until the study's page says one of these states, without reloading it."""
    end = time.monotonic() + END_MS / 1000
    while time.monotonic() < end:
        state = page.locator("#head").get_attribute("data-state")
        if state in states:
            return state
        page.wait_for_timeout(500)
    raise AssertionError(f"{name} is {state}")


def test_from_a_study_with_two_faults_to_a_loaded_adapter(page, link, tmp_path):
    host = link.split("/login")[0]
    # Two faults, each at its line; mended, the study is submitted.
    broken = STUDY.format(name="first", seed=0).replace("model: embedded", "model: embeded")
    write(page, host, broken.replace("rank: 4", "rnk: 4"))
    page.locator(".gutter .bad").nth(1).wait_for()
    assert page.locator(".gutter .bad").all_inner_texts() == ["3", "8"]
    assert page.get_by_role("button", name="Submit").is_disabled()
    write(page, host, STUDY.format(name="first", seed=0))
    submit(page, "first")
    # It is watched to its end, which comes without reloading; then the answer and the examples are read.
    assert wait_for_state(page, "first", "finished", "failed") == "finished"
    page.goto(f"{host}/studies/first")
    page.get_by_role("heading", name="Methods on the test split").wait_for()
    page.locator('[data-chart="learning"] .main-svg').first.wait_for()
    page.goto(f"{host}/studies/first/examples?filter=all")
    picture = page.locator(".example img").first
    picture.wait_for()
    assert (
        page.evaluate("async i => { await i.decode(); return i.naturalWidth }", picture.element_handle()) > 0
    )
    # A second one is compared with it.
    write(page, host, STUDY.format(name="second", seed=0).replace("buffer: 4", "buffer: 8"))
    submit(page, "second")
    wait_for_state(page, "second", "finished")
    page.goto(f"{host}/compare?subject=first&subject=second")
    page.get_by_text("strategy.buffer: 4 in first; 8 in second").wait_for()
    # A third is stopped and resumed.
    write(page, host, STUDY.format(name="third", seed=5))
    submit(page, "third")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    wait_for_state(page, "third", "stopped", "finished")
    page.get_by_role("button", name="Resume").click()
    wait_for_state(page, "third", "queued", "starting", "running")
    assert wait_for_state(page, "third", "finished", "failed") == "finished"
    # The adapter is downloaded and loads with PEFT.
    page.goto(f"{host}/studies/first")
    page.get_by_text("More", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Adapter of the chosen setting").click()
    file = tmp_path / "adapter.zip"
    download.value.save_as(file)
    load_with_peft(file, tmp_path / "adapter")


def load_with_peft(file, folder):
    from peft import PeftModel

    from dgg_ray.models.embedded import Embedded

    with zipfile.ZipFile(file) as opened:
        opened.extractall(folder)
    (config,) = folder.rglob("adapter_config.json")
    model = PeftModel.from_pretrained(Embedded().load()[0], str(config.parent))
    assert any("lora_" in name for name, _ in model.named_parameters())
