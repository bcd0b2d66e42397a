"""A service for each test, further servers of its store, servers that listen, and a browser."""

import os
import shutil
from contextlib import ExitStack

import pytest
from server_samples import listening, make_service

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)


@pytest.fixture
def service(tmp_path):
    return make_service(tmp_path)


@pytest.fixture
def make(tmp_path):
    """Make further servers of the same store."""
    return lambda **changes: make_service(tmp_path, **changes)


@pytest.fixture
def listen():
    """Let an application listen on this machine until the test ends; return its address."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(listening(app))


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser")
    program = os.environ.get("DGG_RAY_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not program:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def watched_page(chromium):
    """Open a page that may ask this server alone, in a context of its own.

    Its `complaints` are errors and warnings of the browser, and addresses elsewhere that it asked.
    """
    contexts = []

    def watched_page(server: str, **options):
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.complaints = []

        def note(text, bad=True):
            if bad:
                page.complaints.append(text)

        page.on("console", lambda m: note(m.text, m.type in ("error", "warning")))
        page.on("pageerror", lambda error: note(str(error)))
        page.on("request", lambda r: note(r.url, not r.url.startswith((server, "data:", "blob:"))))
        return page

    yield watched_page
    for context in contexts:
        context.close()
