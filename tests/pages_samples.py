"""A server with studies in every state, for tests of its pages; nothing runs and nothing is read."""

from __future__ import annotations

import time
from pathlib import Path

from server_samples import NotedReader, make_service

from dgg_ray.config import registry
from dgg_ray.service import accounts
from dgg_ray.service.app import make_app
from dgg_ray.service.scheduling import Capacity
from dgg_ray.service.security import Access

TOKEN = "the-token"
SCRIPT = "<script>alert(1)</script>"
BEST = "faa 0.746 (95 % CI 0.701 to 0.790) with strategy.buffer=30"


class Server:
    """A server's application and its service, which starts nothing. open_to_all: without tokens."""

    def __init__(self, folder: Path, open_to_all: bool = False) -> None:
        self.service = make_service(folder, Capacity(8, 4))
        self.service.supervise = lambda: None
        access = Access(self.service.journal, "" if open_to_all else TOKEN, open_to_all)
        self.app = make_app(self.service, NotedReader(), access)

    def event(self, kind: str, **facts) -> None:
        self.service.journal.commit(lambda state: {"kind": kind, "by": "server", **facts})

    def add_user(self, name: str, role: str) -> str:
        return accounts.add_user(self.service.journal, name, role, "local")

    def submit(self, name: str, question: str = "", by: str = "ana", **needs: float) -> None:
        facts = {"text": f"name: {name}", "question": question, "needs": needs or {"cpus": 1}, "priority": 0}
        self.event("submitted", study=name, **facts | {"by": by})

    def start(self, name: str) -> None:
        self.event("started", study=name, runner=f"runner-{name}")
        self.event("began", study=name)

    def end(self, name: str, how: str = "finished", message: str = "", **facts) -> None:
        self.event("ended", study=name, how=how, message=message, **{"spent": {}, **facts})

    def report_progress(self, name: str, **live) -> None:
        """What a running study says of itself."""
        content = {
            "at": time.time(),
            "done": 3,
            "total": 12,
            "exact": True,
            "failed": 0,
            "best": BEST,
            **live,
        }
        self.service.store.put_document(registry.document_name(name, registry.LIVE), {"content": content})
        study = {"content": {"raw": {"question": ""}}}
        self.service.store.put_document(registry.document_name(name, registry.STUDY), study)
        self.service.listed_at = float("-inf")
        self.service.look()
