"""Records in a store of the studies that were run with it, so that any machine that reaches it can read them.

    studies/NAME/study.json       the study as it was checked, from which everything else is read
    studies/NAME/forecast.json    the predictions of each run
    studies/NAME/progress.json    what runs now and how far the study is; after the end, how the run ended
    studies/NAME/decisions/000001.json …    what people decided about it since (decisions.py)

The first three are the small files of a results folder. `fetch_results` writes them into a folder elsewhere,
where every command that reads results works: the stages and the decisions come from the store.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote

from dgg_ray.config import loader, saved_study
from dgg_ray.config.decisions import Decision
from dgg_ray.config.sections import Budget
from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import DggError, Fault, ResultsError, StoreInUseError, StudyError, did_you_mean
from dgg_ray.core.hashing import digest
from dgg_ray.core.json_files import read_json, write_json
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import StoreView

STUDY, FORECAST, LIVE = saved_study.SAVED_STUDY, "forecast.json", "progress.json"
FRESH_S = 60.0  # age at which a running study's last report is out of date
PUBLISH_EVERY_S = FRESH_S / 4  # a write to an object store costs money
END_S = 5.0  # longest wait at the end of a run for a store that is out of reach
ANYWHERE = "/a/folder/of/any/machine"


@dataclass
class StatePublisher:
    """Publishes the state of a run while it goes on, in its results folder and in the store.

    shared: whether other machines may use the store for other people's studies. The name of another study is
        then a fault.
    progress: says how far the study is, once the run is over.
    """

    study: Study
    store: StageStore
    out: Path
    shared: bool = False
    progress: Callable[[], dict[str, Any]] = dict
    next_publication: float = field(default=0.0, init=False)
    begun: bool = field(default=False, init=False)
    publishing: threading.Thread | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        if self.shared and (before := self.store.get_document(document_name(self.study.name, STUDY))):
            refuse_another_study(
                self.study.name,
                part_hashes(self.study.file.content),
                part_hashes(before["content"]["raw"]),
                self.store.url,
            )
        saved_study.save_study(self.study, self.out)
        self.put(STUDY)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        with contextlib.suppress(OSError):
            (self.out / LIVE).unlink(missing_ok=True)
        how = "ended" if kind is None else f"failed: {kind.__name__}: {error}"
        how = "stopped" if kind is not None and issubclass(kind, KeyboardInterrupt) else how
        end = time.monotonic() + END_S
        if self.publishing:  # so that it does not overwrite the last state
            self.publishing.join(END_S)
        over = {"at": time.time(), "running": [], "queued": 0, "ended": how}
        self.publish_aside(self.progress() | over)
        if self.publishing:
            self.publishing.join(max(0.0, end - time.monotonic()))

    def live(self, content: dict[str, Any]) -> None:
        """Publish the stages that run now, and how far the study is: {at, running, queued, done, …}.

        A store that is out of reach neither delays this nor raises; OSError where the folder takes no file.
        """
        write_json(self.out / LIVE, content)
        first = bool(content["running"]) and not self.begun
        if first or time.monotonic() >= self.next_publication:
            self.begun |= first
            self.next_publication = time.monotonic() + PUBLISH_EVERY_S
            self.publish_aside(content)

    def publish_aside(self, content: dict[str, Any]) -> None:
        """Publish to the store in a thread of its own, unless the last one is still busy."""
        if self.publishing is None or not self.publishing.is_alive():
            self.publishing = threading.Thread(target=self.publish, args=(dict(content),), daemon=True)
            self.publishing.start()

    def publish(self, content: dict[str, Any]) -> None:
        content |= {"host": socket.gethostname(), "pid": os.getpid()}
        with contextlib.suppress(DggError, OSError):  # only a display; the stages are what counts
            self.put(FORECAST)
            self.store.put_document(document_name(self.study.name, LIVE), {"content": content})

    def put(self, file: str) -> None:
        if (content := read_json(self.out / file)) is not None:
            self.store.put_document(document_name(self.study.name, file), {"content": content})


def document_name(study: str, file: str) -> str:
    return f"studies/{study}/{file}"


class Entry(NamedTuple):
    """A study in a store. state: running, ended, stopped, `failed: …`, or silent."""

    name: str
    state: str
    at: float
    question: str


def list_studies(store: StageStore) -> list[Entry]:
    """List all studies that were run with the store, by name."""
    return [
        entry_of(name, files) for name, files in sorted(documents_by_study(store).items()) if STUDY in files
    ]


def entry_of(name: str, files: Mapping[str, Any]) -> Entry:
    live: dict[str, Any] = files.get(LIVE) or {"at": 0.0}
    fresh = time.time() - live["at"] < FRESH_S
    state = live.get("ended") or ("running" if fresh else "silent")
    return Entry(name, state, live["at"], files[STUDY]["raw"].get("question", ""))


def documents_by_study(store: StageStore, prefix: str = "studies/") -> dict[str, dict[str, Any]]:
    """Study → file → its content."""
    documents: dict[str, dict[str, Any]] = {}
    for name, document in store.list_documents(prefix):
        _, study, *file = name.split("/")
        if file[:1] in ([STUDY], [LIVE], [FORECAST]):  # there may be other documents
            documents.setdefault(study, {})[file[0]] = document["content"]
    return documents


def fetch_results(store: StageStore, name: str, out: Path) -> Path:
    """Write what the store holds of a study into a folder, and return the folder.

    Raises ResultsError where the store has no study of that name, and for a folder with another study's
    results or with stages of its own.
    """
    files = documents_by_study(store, document_name(name, "")).get(name, {})
    if STUDY not in files:
        names = [entry.name for entry in list_studies(store)]
        raise ResultsError(
            f"{store.url} holds no study {name!r}; it holds {', '.join(names) or 'none'}"
            f"{did_you_mean(name, names)}"
        )
    if (out / "stages").exists():
        raise ResultsError(
            f"{out} has stages of its own; name another folder for this copy with --download-to"
        )
    if there := read_json(out / STUDY):
        stored, local = files[STUDY]["raw"], there.get("raw", {})
        if stored.get("name") != local.get("name") or part_hashes(stored) != part_hashes(local):
            raise ResultsError(
                f"{out} has the results of another study, {local.get('name')!r}; name another folder for "
                f"this copy of {name!r} with --download-to"
            )
    for file, content in files.items():
        write_json(out / file, content | {"store": store.url} if file == STUDY else content)
    return out


def study_names(store: StageStore) -> set[str]:
    """Return the names of all studies that were run with the store."""
    documents = (unquote(name) for name in store.backend.list_names("studies/"))
    return {path.split("/")[1] for path in documents if path.endswith(f"/{STUDY}.json")}


def stored_study(store: StageStore, name: str) -> Study:
    """The study of that name as it was checked last, with its decisions; ResultsError without one."""
    with tempfile.TemporaryDirectory() as folder:
        study = saved_study.require_saved_study(fetch_results(store, name, Path(folder)))
    return with_decisions(study, store)


def stored_studies(
    store: StageStore, deleted: Collection[str] = (), known: Collection[str] = ()
) -> Iterator[Study]:
    """Yield the studies that were run with the store, as they were checked last.

    Raises StoreInUseError for a study that cannot be read, unless it is known from elsewhere.

    deleted: names of studies to leave out. known: names of studies that are known from elsewhere.
    """
    for name in sorted(study_names(store) - {*deleted}):
        try:
            with tempfile.TemporaryDirectory() as folder:
                yield saved_study.require_saved_study(fetch_results(store, name, Path(folder)))
        except (DggError, KeyError, TypeError) as problem:
            if name not in known:
                raise StoreInUseError(
                    f"what study {name!r} needs cannot be read from {store.url} ({type(problem).__name__}: "
                    f"{problem}); name its results folder, or give --deleted-study {name} if it is deleted"
                ) from problem


# -- decisions -------------------------------------------------------------------------------------


def read_decisions(store: StageStore, name: str) -> tuple[Decision, ...]:
    """The decisions about a study, in their order, as they are now."""
    now = store.source if isinstance(store, StoreView) else store  # a view may be old
    found = now.list_documents(document_name(name, "decisions/"))
    return tuple(Decision.parse(content) for _, content in found)


def append_decision(store: StageStore, name: str, decision: Decision) -> bool:
    """Store a decision under its number; return False if there is one of that number already."""
    return store.create_document(document_name(name, f"decisions/{decision.number:06}"), decision.as_json())


def next_decision_number(store: StageStore, name: str) -> int:
    """The number after that of the last decision about a study."""
    names = store.backend.list_names(quote(document_name(name, "decisions/")))
    return 1 + max((int(PurePosixPath(name).stem) for name in names), default=0)


def with_decisions(study: Study, store: StageStore) -> Study:
    """The study with the decisions that its store holds, and with the budget that they leave it."""
    decisions = read_decisions(store, study.name)
    if decisions == study.data.decisions:
        return study
    limits = {name: limit for decision in decisions for name, limit in decision.limits.items()}
    budget = replace(study.budget or Budget(), **limits) if limits else study.budget
    return replace(study, budget=budget, data=replace(study.data, decisions=decisions))


# -- one name, one study ---------------------------------------------------------------------------


def part_hashes(raw: Mapping[str, Any]) -> dict[str, str]:
    """Hash each part that all of a study's stages have in common, wherever its data are; 8 hex digits each.

    Orders, seeds, the search and the budget may grow under one name, because finished stages stay useful.
    """
    study, _ = loader.build_study(raw, ANYWHERE, files=False)
    if study is None:
        return {}
    trained = {name: study.readers[name] for name in study.task_names}  # the others bear on no stage
    readers = {name: [plugins.plugin_name(r), asdict(r)] for name, r in trained.items()}  # type: ignore[arg-type]
    simulated = study.workers.engine == "simulated"
    parts = {
        "model": [plugins.plugin_name(study.model), asdict(study.model)],  # type: ignore[arg-type]
        "tasks": readers,
        "strategy": [plugins.plugin_name(study.strategy), asdict(study.strategy)],
        "adapter": asdict(study.adapter),
        "training": asdict(study.training),
        "simulation": asdict(study.simulation) if simulated else None,
    }
    return {part: digest(with_text_paths(content))[:8] for part, content in parts.items()}


def with_text_paths(content: Any) -> Any:
    """Convert the paths in nested content to text."""
    if isinstance(content, Mapping):
        return {key: with_text_paths(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [with_text_paths(value) for value in content]
    return str(content) if isinstance(content, Path) else content


def refuse_another_study(name: str, own: Mapping[str, str], stored: Mapping[str, str], where: str) -> None:
    """Raise StudyError where the name is that of a study that trains something else."""
    differ = [part for part in own if own[part] != stored.get(part)]
    if differ:
        rule = f"is the name of a study at {where} with another {' and '.join(differ)}"
        todo = "give this one another name, or undo that change to continue the other"
        raise StudyError([Fault("name", f"{rule}; {todo}", repr(name))], name)
