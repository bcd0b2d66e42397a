"""The process that reads results for the server: it holds those of a few studies and answers queries.

`reader.Reader` starts it and talks to it. It may be killed at any time, because it holds nothing that the
store does not hold.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dgg_ray import api
from dgg_ray.config import registry
from dgg_ray.core.errors import ResultsError, StudyError
from dgg_ray.service import views
from dgg_ray.storage.stage_store import StageStore, open_store

MAX_OUTCOMES = 4
MAX_ROWS = 3_000_000  # score entries of all of them together; the last one is held whatever its size
KEPT_REVISIONS = 2  # of a study's files: those of the one before may be on their way to a browser
JSON, FILE = "application/json", "path"


@dataclass
class Answerer:
    """Answers queries, with the results of the last few studies in memory.

    folder: where the copies of studies and the files made from them lie, NAME/REVISION/….
    """

    store: StageStore
    folder: Path
    outcomes: OrderedDict[tuple[str, str], api.Outcome] = field(default_factory=OrderedDict)

    def answer(self, query: Mapping[str, Any]) -> tuple[str, bytes]:
        """Return the media type and the content of an answer; for a file FILE and its path.

        query: {do, studies: [[name, revision], …], what, params}.
        """
        studies = [(str(name), str(revision)) for name, revision in query["studies"]]
        outcomes = [self.outcome(*study) for study in studies]
        match query["do"]:
            case "load":
                return JSON, b"null"
            case "view":
                return JSON, views.view(outcomes[0], query["what"], query["params"])
            case "compare":
                return JSON, views.compare(list(zip(outcomes, query["params"]["settings"], strict=True)))
            case "picture":
                data, media_type = views.picture(outcomes[0], query["params"])
                return media_type, data
            case "file":
                target = self.folder_of(*studies[0]) / "files"
                path = views.write_file(outcomes[0], target, query["what"], query["params"])
                return FILE, str(path).encode()
        raise ResultsError(f"the reader does not know the query {query['do']!r}")

    def outcome(self, name: str, revision: str) -> api.Outcome:
        """The results of a study at a revision, loaded from the store unless they are held."""
        key = (name, revision)
        if key not in self.outcomes:
            copy = self.folder_of(name, revision) / "study"
            shutil.rmtree(copy, ignore_errors=True)
            self.outcomes[key] = api.open(registry.fetch_results(self.store, name, copy))
            self.forget(name)
        self.outcomes.move_to_end(key)
        return self.outcomes[key]

    def folder_of(self, name: str, revision: str) -> Path:
        return self.folder / name / revision

    def forget(self, name: str) -> None:
        """Forget what is too much: results in memory, and files of earlier revisions of a study."""
        while len(self.outcomes) > 1 and (len(self.outcomes) > MAX_OUTCOMES or self.rows() > MAX_ROWS):
            self.outcomes.popitem(last=False)
        revisions = sorted((self.folder / name).iterdir(), key=lambda path: path.stat().st_mtime)
        for old in revisions[:-KEPT_REVISIONS]:
            self.outcomes.pop((name, old.name), None)
            shutil.rmtree(old, ignore_errors=True)

    def rows(self) -> int:
        return sum(len(outcome.table) for outcome in self.outcomes.values())


def serve(connection: Connection, answerer: Answerer) -> None:
    """Answer queries until the server is gone: a header in JSON, then the content."""
    while True:
        try:
            query = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        began, content = time.monotonic(), b""
        header: dict[str, Any]
        try:
            media_type, content = answerer.answer(query)
            header = {"media_type": media_type}
        except Exception as problem:  # of this query alone; the next one is another
            header = {"error": describe(problem)}
        header["seconds"] = time.monotonic() - began
        connection.send_bytes(json.dumps(header).encode())
        connection.send_bytes(content)


def describe(problem: Exception) -> dict[str, Any]:
    """The error for the server, which raises it again; what is no mistake of the caller is printed too."""
    if isinstance(problem, StudyError):
        faults = [asdict(fault) for fault in problem.faults]
        return {"kind": "StudyError", "faults": faults, "source": problem.source}
    if isinstance(problem, ResultsError):
        return {"kind": "ResultsError", "message": str(problem)}
    traceback.print_exception(problem, file=sys.stderr)
    return {"kind": type(problem).__name__, "message": str(problem)}


def main() -> None:
    handle, store, folder = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's terminal sends it to both; the server decides
    with Connection(int(handle)) as connection:
        serve(connection, Answerer(open_store(store), Path(folder)))


if __name__ == "__main__":
    main()
