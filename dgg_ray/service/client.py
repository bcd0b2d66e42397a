"""A client of the service, for Python and for the command line.

client = dgg_ray.Client("http://127.0.0.1:8750", token)   # or $DGG_RAY_TOKEN
client.submit(Path("studies/quickstart.yaml"))
for card in client.follow("quickstart"):                  # until it is over
    print(card["state"], card["progress"])
client.table("quickstart")                                # every score, as a DataFrame
client.adapter("quickstart", "adapter.zip")
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests

from dgg_ray.core.errors import DggError, Fault, StudyError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

CONNECT_S, ANSWER_S = 10.0, 660.0  # the server gives up on a view after 600 s, and says so
RECONNECT_S = 60.0  # for the server to answer again while a study is followed
OVER = ("finished", "stopped", "failed")
CHUNK = 1 << 20  # bytes of a download at a time
DECISIONS = {  # kind → where it is posted, in a study
    "stop_setting": ("settings", "{setting}", "stop"),
    "pin": ("settings", "{setting}", "pin"),
    "unpin": ("settings", "{setting}", "unpin"),
    "stop_branch": ("branches", "stop"),
    "budget": ("budget",),
}


class ServerError(DggError):
    """The server refuses, or does not answer. status: of HTTP; 0 without an answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Client:
    """A connection to a service. Raises StudyError for a study's faults, ServerError for all else.

    url: as `dgg-ray serve` prints it. token: of a user; None takes $DGG_RAY_TOKEN, "" none.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.split("?")[0].rstrip("/").removesuffix("/login")
        token = os.environ.get("DGG_RAY_TOKEN", "") if token is None else token
        self.session = requests.Session()
        if token:
            self.session.headers["authorization"] = f"Bearer {token}"

    # -- before submitting -------------------------------------------------------------------------

    def validate(self, study: str | Path) -> dict[str, Any]:
        """Check a study: {name, question, faults, warnings, needs}."""
        return self._json("POST", "/validate", json={"text": text_of(study)})

    def plan(self, study: str | Path, detect: float | None = None) -> dict[str, Any]:
        """Predict what a study costs. detect: a difference in points of 100."""
        return self._json("POST", "/plan", json={"text": text_of(study), "detect": detect})

    # -- studies -----------------------------------------------------------------------------------

    def submit(self, study: str | Path, priority: int = 0) -> dict[str, Any]:
        """Put a study into the queue, given as its text or its file; return its card."""
        return self._json("POST", "/studies", json={"text": text_of(study), "priority": priority})

    def studies(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield the card of every study. filters: state, owner, q, sort."""
        page, pages = 1, 1
        while page <= pages:
            found = self._json("GET", "/studies", params={**filters, "page": page, "per_page": 200})
            yield from found["items"]
            page, pages = page + 1, found["pages"]

    def study(self, name: str) -> dict[str, Any]:
        """A study's card, with its `text` and `history`."""
        return self._json("GET", place(name))

    def stop(self, name: str) -> dict[str, Any]:
        """End a study as Ctrl-C does; finished stages are kept."""
        return self._json("POST", place(name, "stop"))

    def resume(self, name: str, study: str | Path | None = None) -> dict[str, Any]:
        """Put a study that is over into the queue again; study: with this text or file."""
        return self._json("POST", place(name, "resume"), json={"text": text_of(study) if study else None})

    def clone(
        self, name: str, new_name: str, changes: Mapping[str, Any] | None = None, priority: int = 0
    ) -> dict[str, Any]:
        """Submit a study again under another name, with changed settings: dotted path → value."""
        body = {"name": new_name, "changes": dict(changes or {}), "priority": priority}
        return self._json("POST", place(name, "clone"), json=body)

    def extend(
        self,
        name: str,
        tasks: Mapping[str, str],
        new_name: str | None = None,
        reader: str = "llava",
        priority: int = 0,
    ) -> dict[str, Any]:
        """Submit a study with more tasks after its own.

        tasks: name → a folder below the server's data, a train file, or a reader that needs no files.
        """
        body = {"tasks": dict(tasks), "name": new_name, "reader": reader, "priority": priority}
        return self._json("POST", place(name, "extend"), json=body)

    def set_priority(self, name: str, priority: int) -> dict[str, Any]:
        return self._json("POST", place(name, "priority"), json={"priority": priority})

    def delete(self, name: str) -> None:
        """Forget a study that does not run."""
        self._request("DELETE", place(name))

    def decide(self, name: str, kind: str, **about: Any) -> dict[str, Any]:
        """Decide about a running study; return the decision as recorded.

        kind: stop_setting, pin or unpin with `setting`; stop_branch with `values`; budget with `limits`.
        """
        if kind not in DECISIONS:
            known = ", ".join(DECISIONS) + did_you_mean(kind, DECISIONS)
            raise ServerError(f"no decision is of the kind {kind!r}; there are {known}")
        setting = about.pop("setting", "")
        if (DECISIONS[kind][0] == "settings") != bool(setting):
            raise ServerError(f"{kind} needs {'a' if not setting else 'no'} setting, by its id")
        path = [part.format(setting=setting) for part in DECISIONS[kind]]
        return self._json("POST", place(name, *path), json=about or None)

    def decisions(self, name: str) -> list[dict[str, Any]]:
        """The decisions that people took about the study while it ran."""
        return self._json("GET", place(name, "decisions"))["items"]

    def logs(self, name: str) -> str:
        """The end of what the study's runs printed."""
        return self._request("GET", place(name, "logs")).text

    def follow(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the study's card whenever it changes, until the study is over."""
        last, lost_since = "", 0.0
        while True:
            try:
                for number, kind, data in self._events(place(name, "events"), last):
                    last, lost_since = number, 0.0
                    if kind == "study":
                        yield data
                        if data["state"] in OVER:
                            return
                    elif kind == "gone":
                        return
            except (requests.RequestException, ServerError) as error:
                if isinstance(error, ServerError) and 0 < error.status < 500:
                    raise
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > RECONNECT_S:
                    text = f"{self.url} does not answer any more; the study itself goes on"
                    raise ServerError(text) from error
            time.sleep(1.0)

    def wait(self, name: str) -> dict[str, Any]:
        """Wait until the study is over; return its card."""
        for _ in self.follow(name):
            pass
        return self.study(name)

    # -- results -----------------------------------------------------------------------------------

    def view(self, name: str, view: str) -> dict[str, Any]:
        """A view of the results: summary, comparison, curves, tree, … as the pages show them."""
        return self._json("GET", place(name, "view", view))

    def examples(self, name: str, **filters: Any) -> dict[str, Any]:
        """Questions with their answers. filters: task, setting, other_setting, split, stage, filter, page."""
        return self._json("GET", place(name, "examples"), params=filters)

    def compare(self, *subjects: str) -> dict[str, Any]:
        """Two to eight studies, STUDY or STUDY:SETTING, on the blocks that they share."""
        return self._json("GET", "/compare", params={"subject": list(subjects)})

    def table(self, name: str) -> pd.DataFrame:
        """Every score of the study, one row each."""
        import io

        import pandas as pd  # late: submitting a study does without

        content = self._request("GET", place(name, "tables", "table.parquet")).content
        return pd.read_parquet(io.BytesIO(content))

    def adapter(self, name: str, file: str | Path, setting: str = "") -> Path:
        """Download a setting's adapter with its model card; without a setting, that of the chosen one."""
        return self._download(place(name, "adapter.zip"), Path(file), params={"setting": setting})

    def report(self, name: str, file: str | Path) -> Path:
        """Download the report, one page."""
        return self._download(place(name, "report"), Path(file))

    # -- the service -------------------------------------------------------------------------------

    def me(self) -> dict[str, Any]:
        return self._json("GET", "/me")

    def queue(self) -> dict[str, Any]:
        """The studies that run, those that wait and for what, and the machines' capacity."""
        return self._json("GET", "/queue")

    def spending(self, by: str = "user") -> list[dict[str, Any]]:
        """Worker-hours, GPU-hours and money, by user, study or week."""
        return self._json("GET", "/spending", params={"by": by})["items"]

    # -- requests ----------------------------------------------------------------------------------

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", (CONNECT_S, ANSWER_S))
        try:
            response = self.session.request(method, f"{self.url}/api/v1{path}", **options)
        except requests.RequestException as error:
            reason = f"{type(error).__name__}"
            raise ServerError(f"no answer from {self.url} ({reason}); does `dgg-ray serve` run?") from error
        if response.ok:
            return response
        raise self._refusal(response)

    def _refusal(self, response: requests.Response) -> DggError:
        try:
            content = response.json()
            detail = content["detail"]
        except (ValueError, KeyError, TypeError):
            content, detail = {}, self._stranger(f"status {response.status_code}")
        if faults := content.get("faults"):
            fields = ("path", "rule", "found", "near", "file", "line")
            known = [{key: fault[key] for key in fields if key in fault} for fault in faults]
            return StudyError([Fault(**fault) for fault in known], self.url)
        if response.status_code == 401:
            detail += "; set DGG_RAY_TOKEN to a user's token (dgg-ray user add NAME)"
        return ServerError(detail, response.status_code)

    def _json(self, method: str, path: str, **options: Any) -> Any:
        response = self._request(method, path, **options)
        try:
            return response.json()
        except ValueError as error:
            text = self._stranger("what is no JSON")
            raise ServerError(text, response.status_code) from error

    def _stranger(self, found: str) -> str:
        advice = "is it a dgg_ray service? Check the address, and any proxy before it"
        return f"{self.url} answers with {found}; {advice}"

    def _download(self, path: str, file: Path, **options: Any) -> Path:
        with self._request("GET", path, stream=True, **options) as response:
            draft = file.with_name(f".{file.name}.part")
            try:
                with draft.open("wb") as opened:
                    for chunk in response.iter_content(CHUNK):
                        opened.write(chunk)
                draft.replace(file)
            except requests.RequestException as error:
                text = f"the connection to {self.url} was lost while {file} was downloaded; ask again"
                raise ServerError(text) from error
            finally:
                draft.unlink(missing_ok=True)
        return file

    def _events(self, path: str, last: str) -> Iterator[tuple[str, str, Any]]:
        """Yield (id, kind, data) of server-sent events until the connection ends."""
        headers = {"last-event-id": last} if last else {}
        with self._request("GET", path, stream=True, headers=headers, timeout=(CONNECT_S, 60.0)) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise ServerError(self._stranger("what is no stream of events"), response.status_code)
            fields: dict[str, str] = {}
            for line in response.iter_lines(chunk_size=1):
                if not line:
                    if "data" in fields:
                        yield fields.get("id", last), fields.get("event", ""), json.loads(fields["data"])
                    fields = {}
                    continue
                key, _, value = line.decode("utf-8").partition(":")
                fields[key] = value.removeprefix(" ")


def place(name: str, *rest: str) -> str:
    """The path of a study, or of something of it."""
    return "/".join(["/studies", *(quote(part, safe="") for part in (name, *rest))])


def text_of(study: str | Path) -> str:
    """A study's text: given as such, or the content of a file."""
    return study.read_text(encoding="utf-8") if isinstance(study, Path) else study
