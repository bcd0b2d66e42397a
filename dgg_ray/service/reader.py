"""Results for the server, read by a process of its own so that the server stays small and quick.

    reader = Reader("s3://bucket/store", root / "cache")
    reader.view("my-study", "summary")                    bytes of JSON, see service/views
    reader.file("my-study", "figure", name="forest")      the path of a file that was made
    reader.picture("my-study", "charts", "17")            the bytes of a picture, its media type
    reader.compare([("my-study", ""), ("other", "replay")])
    reader.revision("my-study")                           changes when the study's pages change

One process (reader_process.py) answers all queries in the order of their arrival. It is started again when it
dies or takes too long. Answers are kept in memory by study, revision and query, so that a repeated query
costs nothing. Refusals are kept for a while; where a study cannot be loaded, that is the refusal of all
queries about this revision of it.

A study has one revision at a time. When the documents of a running study change in the store, its results
are loaded and the views that were asked for are made again, and only then does the revision change: its pages
stay quick. A study that is over is answered by its newest documents only. All methods may be called from any
thread.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from dgg_ray.config import registry
from dgg_ray.config.study import STUDY_NAME
from dgg_ray.core.errors import DggError, Fault, ResultsError, StoreError, StudyError
from dgg_ray.core.hashing import digest
from dgg_ray.service.state import OVER
from dgg_ray.storage.stage_store import open_store

TIME_LIMIT_S = 600.0  # of one query; a study of a million scores takes minutes to load
CACHE_BYTES = 64_000_000
LOOK_EVERY_S = 2.0  # between two looks at a study's documents
CHANGE_EVERY_S = 5.0  # between two revisions of a running study, at least
BUILD_SHARE = 20  # and at least so many times as long as it took to make the answers of the last one
REST_S = 30.0  # after a refusal, at least, and as long as it took: then the query is tried again
REVISION = 16  # hex digits
LOAD = "load"  # the query that only loads a study
FILE = "path"  # the media type of an answer that is the path of a file


CLOSED = "the server is being stopped"


class ReaderError(DggError):
    """The process that reads results failed, or did not answer in time."""


class Query(NamedTuple):
    """A query. studies: (name, revision) of each study that it reads; params: as JSON, sorted by name."""

    do: str
    studies: tuple[tuple[str, str], ...]
    what: str = ""
    params: str = "{}"

    def as_json(self) -> bytes:
        return json.dumps(self._asdict() | {"params": json.loads(self.params)}).encode()

    @property
    def needed(self) -> list[Query]:
        """The queries that load the studies of this one."""
        return [] if self.do == LOAD else [loading(*study) for study in self.studies]


def loading(name: str, revision: str) -> Query:
    return Query(LOAD, ((name, revision),))


class Answer(NamedTuple):
    """An answer. media_type: of the content; FILE for the path of a file. seconds: that it took to make."""

    media_type: str
    content: bytes
    seconds: float

    @property
    def is_there(self) -> bool:
        """Return whether the answer may be given again: a file may have been removed."""
        return self.media_type != FILE or Path(self.content.decode()).exists()


@dataclass
class StudyRevision:
    """The revision of a study for which queries are answered.

    seen: the study's state and run at the last look at its documents. next_look: time before which they are
    not looked at again while that stays so. changed_at: when the revision changed last. building_s: seconds
    that loading it and making its views took. refreshing: the revision whose answers are being made, or "".
    """

    revision: str
    seen: tuple[str, int]
    next_look: float
    changed_at: float
    building_s: float = 0.0
    refreshing: str = ""

    @property
    def next_change(self) -> float:
        """The time before which the revision of a running study does not change again."""
        return self.changed_at + max(CHANGE_EVERY_S, BUILD_SHARE * self.building_s)


@dataclass
class Process:
    """The process that reads results, and the connection to it."""

    running: subprocess.Popen[bytes]
    connection: Connection

    @classmethod
    def start(cls, store_url: str, folder: Path) -> Process:
        own, its = socket.socketpair()
        with its:
            command = [sys.executable, "-m", "dgg_ray.service.reader_process"]
            command += [str(its.fileno()), store_url, str(folder)]
            running = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[its.fileno()]
            )
        return cls(running, Connection(own.detach()))

    def ask(self, query: Query, time_limit_s: float) -> Answer:
        """Return the process's answer. Raises TimeoutError, EOFError or OSError where it gives none."""
        self.connection.send_bytes(query.as_json())
        if not self.connection.poll(time_limit_s):
            raise TimeoutError
        header, content = json.loads(self.connection.recv_bytes()), self.connection.recv_bytes()
        if "error" in header:
            raise error_of(header["error"])
        return Answer(header["media_type"], content, header["seconds"])

    def end(self) -> None:
        self.connection.close()
        self.running.kill()
        self.running.wait()


def error_of(described: Mapping[str, Any]) -> DggError:
    """The error that the process described."""
    if described["kind"] == "StudyError":
        return StudyError([Fault(**fault) for fault in described["faults"]], described["source"])
    if described["kind"] == "ResultsError":
        return ResultsError(described["message"])
    return ReaderError(f"the results could not be read: {described['kind']}: {described['message']}")


@dataclass
class Reader:
    """Answers queries about the studies of a store.

    store_url: a folder or a URL. cache_folder: on this machine; its subfolder `reader` is removed at the
    start. state_and_run: of a study, as the server tells them; a change of either is a reason to look at its
    documents at once. time_limit_s: of one query. cache_bytes: of all answers kept in memory.
    """

    store_url: str
    cache_folder: Path
    state_and_run: Callable[[str], tuple[str, int]]
    time_limit_s: float = TIME_LIMIT_S
    cache_bytes: int = CACHE_BYTES
    clock: Callable[[], float] = time.monotonic
    answers: OrderedDict[Query, Answer] = field(default_factory=OrderedDict, init=False)
    studies: dict[str, StudyRevision] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.store = open_store(self.store_url)
        self.folder = self.cache_folder / "reader"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock = threading.Lock()
        self.asked: set[Query] = set()  # views of the present revisions that somebody asked for
        self.pending: dict[Query, Future[Answer]] = {}
        self.refused: dict[Query, tuple[float, DggError]] = {}  # until when, and why
        self.closed = False
        self.queue: SimpleQueue[Query | Callable[[], object] | None] = SimpleQueue()
        self.process: Process | None = None
        self.worker = threading.Thread(target=self._work, name="reader", daemon=True)
        self.worker.start()
        self.queue.put(self._start_process)  # it imports for seconds; the first page need not wait

    def close(self) -> None:
        """End the process. Queries that wait, and later ones, are refused with ReaderError."""
        with self.lock:
            self.closed = True
            self.queue.put(None)
            if self.process is not None:
                self.process.running.kill()  # so that the worker does not wait for its answer
        self.worker.join()

    # -- queries -----------------------------------------------------------------------------------

    def view(self, study: str, view: str, /, **params: Any) -> bytes:
        """Return a view of a study as JSON.

        Raises ResultsError where there is no such study, view or name in it, and ReaderError where the
        process fails.
        """
        query = self._query("view", [study], view, params)
        with self.lock:
            self.asked.add(query)
        return self._ask(query).content

    def file(self, study: str, what: str, /, **params: Any) -> Path:
        """Return the path of a file of a study: a `figure`, a `table`, the `report` or an `adapter`."""
        return Path(self._ask(self._query("file", [study], what, params)).content.decode())

    def picture(self, study: str, task: str, id: str, split: str = "") -> tuple[bytes, str]:
        """Return the picture of an example and its media type."""
        params = {"task": task, "id": id, "split": split}
        answer = self._ask(self._query("picture", [study], "", params))
        return answer.content, answer.media_type

    def compare(self, subjects: Sequence[tuple[str, str]]) -> bytes:
        """Return the comparison of settings as JSON. subjects: (study, setting), "" is the chosen one."""
        params = {"settings": [setting for _, setting in subjects]}
        return self._ask(self._query("compare", [name for name, _ in subjects], "", params)).content

    def _query(self, do: str, names: Sequence[str], what: str, params: Mapping[str, Any]) -> Query:
        studies = tuple((name, self.revision(name)) for name in names)
        return Query(do, studies, what, json.dumps(params, sort_keys=True))

    def _ask(self, query: Query) -> Answer:
        """Return the answer that is kept, or that of the process."""
        with self.lock:
            if (kept := self.answers.get(query)) and kept.is_there:
                self.answers.move_to_end(query)
                return kept
            if error := self._resting(query):
                raise error
            future = self._queued(query)
        return future.result()

    def _resting(self, query: Query) -> DggError | None:
        """Return why the query, or one that it needs, is not tried now; the lock is held."""
        for wanted in (*query.needed, query):
            until, error = self.refused.get(wanted, (0.0, None))
            if error is not None and self.clock() < until:
                return error.with_traceback(None)  # each raising adds to it
        return None

    def _queued(self, query: Query) -> Future[Answer]:
        """Queue a query, unless it waits already; the lock is held."""
        if self.closed:
            raise ReaderError(CLOSED)
        if query not in self.pending:
            self.pending[query] = Future()
            self.queue.put(query)
        return self.pending[query]

    # -- revisions ---------------------------------------------------------------------------------

    def revision(self, name: str) -> str:
        """Return the revision of a study for which queries are answered now.

        Raises ResultsError where the store holds no such study.
        """
        now, seen = self.clock(), self.state_and_run(name)
        with self.lock:
            known = self.studies.get(name)
            if known and known.seen == seen and (known.refreshing or now < known.next_look):
                return known.revision
            if known:  # another thread need not look meanwhile
                known.seen, known.next_look = seen, now + LOOK_EVERY_S
        try:
            newest, ended = self._newest(name)
        except (StoreError, OSError):
            if known:  # what was read stays true while the store is out of reach
                return known.revision
            raise
        with self.lock:
            if known is None:
                first = StudyRevision(newest, seen, now + LOOK_EVERY_S, now)
                return self.studies.setdefault(name, first).revision
            if newest == known.revision:
                return newest
            if ended or seen[0] in OVER:
                known.revision, known.refreshing, known.changed_at, known.building_s = newest, "", now, 0.0
                return newest
            if not known.refreshing and now >= known.next_change and not self._resting(loading(name, newest)):
                self._refresh(name, known, newest)
            return known.revision

    def _newest(self, name: str) -> tuple[str, bool]:
        """The revision of a study's documents in the store, and whether they say that it ended."""
        documents = {}
        if STUDY_NAME.fullmatch(name):
            for file in (registry.STUDY, registry.LIVE):
                documents[file] = self.store.get_document(registry.document_name(name, file))
        if not documents.get(registry.STUDY):
            raise ResultsError(f"{self.store.url} holds no study {name!r}")
        live = documents[registry.LIVE] or {"content": {}}
        return digest(documents)[:REVISION], bool(live["content"].get("ended"))

    def _refresh(self, name: str, known: StudyRevision, newest: str) -> None:
        """Queue the answers of the next revision, and the change to it; the lock is held."""
        known.refreshing, known.building_s = newest, 0.0
        old, new = ((name, known.revision),), ((name, newest),)
        wanted = [query for query in self.asked if query.studies == old and query in self.answers]
        self.asked -= {query for query in self.asked if query.studies == old}
        loaded = self._queued(loading(name, newest))
        for query in wanted:
            self._queued(query._replace(studies=new))

        def change() -> None:
            with self.lock:
                if known.refreshing != newest:  # the study is over meanwhile, and what it ended with is asked
                    return
                if loaded.exception() is None:
                    known.revision = newest
                known.refreshing, known.changed_at = "", self.clock()
                known.next_look = known.changed_at + LOOK_EVERY_S

        self.queue.put(change)

    # -- the thread that talks to the process --------------------------------------------------------

    def _work(self) -> None:
        """Answer queries one by one until the reader is closed."""
        while (job := self.queue.get()) is not None:
            if isinstance(job, Query):
                self._work_on(job)
            else:
                # A process that cannot be started is no fault of this job; a query says so.
                with contextlib.suppress(OSError, ReaderError):
                    job()
        self._end_process()

    def _work_on(self, query: Query) -> None:
        error: BaseException | None = None
        answer = None
        try:
            for needed in query.needed:
                if needed not in self.answers:
                    self._answer(needed)
            answer = self._answer(query)
        except BaseException as problem:  # the caller's thread raises it
            error = problem
        with self.lock:
            future = self.pending.pop(query)
        if answer is not None:
            future.set_result(answer)
        else:
            future.set_exception(error)

    def _answer(self, query: Query) -> Answer:
        """Ask the process and keep its answer; its refusal is kept for a while."""
        began = self.clock()
        with self.lock:
            if error := self._resting(query):
                raise error
        try:
            answer = self._ask_process(query)
        except DggError as problem:
            now = self.clock()
            rest = max(REST_S, now - began)
            error = problem
            if isinstance(problem, ReaderError):  # others are mistakes of the caller
                error = ReaderError(f"{problem}; try again in {rest:.0f} s")
            with self.lock:
                self.refused = {q: known for q, known in self.refused.items() if known[0] > now}
                self.refused[query] = (now + rest, error)
            raise error from problem.__cause__
        with self.lock:
            self._keep(query, answer)
        return answer

    def _ask_process(self, query: Query) -> Answer:
        """Ask the process; where it died, a new one, once. Raises DggError for everything that it refuses."""
        names = ", ".join(dict.fromkeys(name for name, _ in query.studies))
        failed = f"{query.what or query.do} of {names}"
        for attempt in (1, 2):
            try:
                return self._start_process().ask(query, self.time_limit_s)
            except TimeoutError:
                self._end_process()
                raise ReaderError(f"{failed} was not made within {self.time_limit_s:.0f} s") from None
            except (EOFError, OSError) as problem:
                self._end_process()
                if attempt == 2:
                    message = f"{failed} could not be made: its process ended, twice"
                    raise ReaderError(f"{message} ({type(problem).__name__})") from problem
        raise AssertionError  # the loop returns or raises

    def _keep(self, query: Query, answer: Answer) -> None:
        """Keep an answer, forget the oldest ones beyond the limit; the lock is held."""
        self.answers[query] = answer
        if query.do in (LOAD, "view") and (known := self.studies.get(query.studies[0][0])):
            known.building_s += answer.seconds
        size = sum(len(kept.content) for kept in self.answers.values())
        while size > self.cache_bytes and len(self.answers) > 1:
            _, forgotten = self.answers.popitem(last=False)
            size -= len(forgotten.content)
        self.asked &= self.answers.keys() | self.pending.keys()

    def _start_process(self) -> Process:
        """Return the process, which is started if there is none. Raises ReaderError once closed."""
        with self.lock:
            if self.closed:
                raise ReaderError(CLOSED)
            if self.process is None:
                self.process = Process.start(self.store.url, self.folder)
            return self.process

    def _end_process(self) -> None:
        with self.lock:
            ended, self.process = self.process, None
        if ended is not None:
            ended.end()
