"""What a store says of the studies that were run with it, so that any machine that reaches it can read them.

    studies/NAME/study.json       the study as it was checked, from which everything else is read
    studies/NAME/forecast.json    what was predicted of each run
    studies/NAME/progress.json    what runs at this moment; after its end, how the run ended

They are the small files of a results folder. `fetch_results` lays them into a folder elsewhere, and there every
command that reads results works: the stages come from the store.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from dgg_ray.config import loader, saved_study
from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import DggError, Fault, ResultsError, StoreInUseError, StudyError, nearest_name
from dgg_ray.core.hashing import digest
from dgg_ray.core.json_files import read_json, write_json
from dgg_ray.storage.stage_store import StageStore

STUDY, FORECAST, LIVE = "study.json", "forecast.json", "progress.json"
NOTE_HOLDS_S = 60.0  # that what is noted of a running study counts as of now
TELL_EVERY_S = NOTE_HOLDS_S / 4  # a write to an object store costs money, and a reader looks now and then
END_S = 5.0  # that a store out of reach holds up the end of a run
ANYWHERE = "/a/folder/of/any/machine"


@dataclass
class StatePublisher:
    """Writes of a run while it goes on, beside its results and into the store.

    shared: other machines may run studies of other people with the store: a name that is another study's is
        a fault, and not simply taken over.
    """

    study: Study
    store: StageStore
    out: Path
    shared: bool = False
    next_told: float = field(default=0.0, init=False)
    begun: bool = field(default=False, init=False)
    telling: threading.Thread | None = field(default=None, init=False)

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
        if self.telling:  # or what it tells might come after what is told now
            self.telling.join(END_S)
        self.aside({"at": time.time(), "running": [], "queued": 0, "ended": how})
        if self.telling:
            self.telling.join(max(0.0, end - time.monotonic()))

    def live(self, content: dict[str, Any]) -> None:
        """The stages that run now: {at, running, queued}. Neither waits nor raises for a store out of reach.

        OSError where the folder takes no file."""
        write_json(self.out / LIVE, content)
        first = bool(content["running"]) and not self.begun
        if first or time.monotonic() >= self.next_told:
            self.begun |= first
            self.next_told = time.monotonic() + TELL_EVERY_S
            self.aside(content)

    def aside(self, content: dict[str, Any]) -> None:
        """Tell the store in a thread of its own; nothing where the last one is still at it."""
        if self.telling is None or not self.telling.is_alive():
            self.telling = threading.Thread(target=self.tell, args=(dict(content),), daemon=True)
            self.telling.start()

    def tell(self, content: dict[str, Any]) -> None:
        content |= {"host": socket.gethostname(), "pid": os.getpid()}
        with contextlib.suppress(DggError, OSError):  # only a display: the stages are what counts
            self.put(FORECAST)
            self.store.put_document(document_name(self.study.name, LIVE), {"content": content})

    def put(self, file: str) -> None:
        if (content := read_json(self.out / file)) is not None:
            self.store.put_document(document_name(self.study.name, file), {"content": content})


def document_name(study: str, file: str) -> str:
    return f"studies/{study}/{file}"


class Entry(NamedTuple):
    """A study as a store knows it. state: running, ended, stopped, failed: …, silent."""

    name: str
    state: str
    at: float
    question: str


def list_studies(store: StageStore) -> list[Entry]:
    """All studies that were run with the store, by name."""
    return [
        entry_of(name, files) for name, files in sorted(documents_by_study(store).items()) if STUDY in files
    ]


def entry_of(name: str, files: Mapping[str, Any]) -> Entry:
    live: dict[str, Any] = files.get(LIVE) or {"at": 0.0}
    fresh = time.time() - live["at"] < NOTE_HOLDS_S
    state = live.get("ended") or ("running" if fresh else "silent")
    return Entry(name, state, live["at"], files[STUDY]["raw"].get("question", ""))


def documents_by_study(store: StageStore, prefix: str = "studies/") -> dict[str, dict[str, Any]]:
    """Study → file → its content."""
    found: dict[str, dict[str, Any]] = {}
    for name, stored_studies in store.list_documents(prefix):
        _, study, *file = name.split("/")
        if file[:1] in ([STUDY], [LIVE], [FORECAST]):  # others may keep notes on studies, too
            found.setdefault(study, {})[file[0]] = stored_studies["content"]
    return found


def fetch_results(store: StageStore, name: str, out: Path) -> Path:
    """The folder, with what the store says of the study; ResultsError where it has none of that name.

    ResultsError also for a folder with another study's results, or with stages of its own."""
    files = documents_by_study(store, document_name(name, "")).get(name, {})
    if STUDY not in files:
        names = [entry_of.name for entry_of in list_studies(store)]
        near = f"did you mean {near!r}? " if (near := nearest_name(name, names)) else ""
        raise ResultsError(
            f"{store.url} holds no study {name!r}; {near}it holds {', '.join(names) or 'none'}"
        )
    if (out / "stages").exists():
        raise ResultsError(f"{out} has stages of its own; name another folder for this copy with --copy")
    if there := read_json(out / STUDY):
        mine, theirs = files[STUDY]["raw"], there.get("raw", {})
        if mine.get("name") != theirs.get("name") or part_hashes(mine) != part_hashes(theirs):
            raise ResultsError(
                f"{out} has the results of another study, {theirs.get('name')!r}; name another folder for "
                f"this copy of {name!r} with --copy"
            )
    for file, content in files.items():
        write_json(out / file, content | {"store": store.url} if file == STUDY else content)
    return out


def stored_studies(
    store: StageStore, gone: Collection[str] = (), known: Collection[str] = ()
) -> Iterator[Study]:
    """The studies that were run with the store, as they were checked last; without those that are gone.

    Raises StoreInUseError for one that cannot be read, unless it is known from elsewhere.
    """
    notes = (unquote(name) for name in store.backend.list_names("studies/"))
    for name in sorted(
        {document_name.split("/")[1] for document_name in notes if document_name.endswith(f"/{STUDY}.json")}
        - {*gone}
    ):
        try:
            with tempfile.TemporaryDirectory() as folder:
                yield saved_study.require_saved_study(fetch_results(store, name, Path(folder)))
        except (DggError, KeyError, TypeError) as problem:
            if name not in known:
                raise StoreInUseError(
                    f"what study {name!r} needs cannot be read from {store.url} ({type(problem).__name__}: "
                    f"{problem}); name its results folder, or give --deleted-study {name} if it is deleted"
                ) from problem


# -- one name, one study ---------------------------------------------------------------------------


def part_hashes(raw: Mapping[str, Any]) -> dict[str, str]:
    """8 hex digits each of what all of a study's stages have in common, wherever its data lie.

    Orders, seeds, the search and the budget may grow under one name: what was learned stays of use.
    """
    study, _ = loader.build_study(raw, ANYWHERE, files=False)
    if study is None:
        return {}
    readers = {name: [plugins.plugin_name(r), asdict(r)] for name, r in study.readers.items()}  # type: ignore[arg-type]
    simulated = study.workers.engine == "simulated"
    found = {
        "model": [plugins.plugin_name(study.model), asdict(study.model)],  # type: ignore[arg-type]
        "tasks": readers,
        "strategy": [plugins.plugin_name(study.strategy), asdict(study.strategy)],
        "adapter": asdict(study.adapter),
        "training": asdict(study.training),
        "simulation": asdict(study.simulation) if simulated else None,
    }
    return {part: digest(without_numbers_type(content))[:8] for part, content in found.items()}


def without_numbers_type(content: Any) -> Any:
    """With paths as text."""
    if isinstance(content, Mapping):
        return {key: without_numbers_type(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_numbers_type(value) for value in content]
    return str(content) if isinstance(content, Path) else content


def refuse_another_study(name: str, mine: Mapping[str, str], theirs: Mapping[str, str], where: str) -> None:
    """StudyError where the name is of a study that learns something else."""
    differ = [part for part in mine if mine[part] != theirs.get(part)]
    if differ:
        rule = f"is the name of a study at {where} with another {' and '.join(differ)}"
        todo = "give this one another name, or undo that change to go on with the other"
        raise StudyError([Fault("name", f"{rule}; {todo}", repr(name))], name)
