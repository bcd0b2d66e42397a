"""What happens, as JSON lines: one event a line, each with its time, study, stage and worker.

    {"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "event": "trained", "study": "quickstart",
     "stage": "1a2b3c4d", "path": "digits > words", "loss": 0.31, "seconds": 12.5,
     "worker": {"name": "fleet-001", "rank": 0, "node": "gpu-7", "pid": 4711}}

    event      said by         with
    fetching   worker, driver  url, files, bytes: data or a model
    fetched    worker, driver  url, seconds
    taken      broker          fleet
    refused    broker, driver  error, message: the budget had nothing for it
    lost       broker          fleet
    claim lost broker, driver  key, to: another driver has the stage now
    claim not kept             key, error, message: the store could not be reached
    not read   broker          … for what a stage took: the budget counts it as lost
    not kept   broker          … for why a stage was given up
    not told   driver          error, message: the display failed
    cluster not seen           error, message: what the cluster has is not known now
    begun      all             of a worker its kind of machine
    ended      worker, driver  –
    fleet over driver          fleet, error: its workers are gone
    given up   driver          reason: no fleet can be had
    gone on    worker          step: from a snapshot
    snapshot   worker          step
    learned    worker          loss, steps, seconds
    examined   worker          scores by "task split"
    published  worker          –
    not made   driver          of_what, error, message, traceback: an accessory (fence.py)
    failed     worker, driver  error, message, traceback
    sentinel   worker          kind, reference, cells: see hardware_check.py; or why it could not be learned

The driver's lines are in OUT/logs; those of brokers and workers go to their standard output, which Ray
keeps, and into that folder too where they see it. `stage` and `path` are empty where no stage is meant.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol


class Staged(Protocol):
    """A stage, or work on one."""

    @property
    def key(self) -> Any: ...  # a str; the checker does not see it through a cached property


log = logging.getLogger("dgg_ray")
log.addHandler(logging.NullHandler())  # nothing is said until `started`


NOWHERE: dict[str, str] = {"stage": "", "path": ""}
ABOUT: ContextVar[dict[str, str]] = ContextVar("ABOUT", default=NOWHERE)  # the stage in hand


def event(name: str, of: Staged | None = None, level: int = logging.INFO, **facts: Any) -> None:
    """Say that something happened to a stage; by default to the one in hand."""
    say(name, of, level, facts)


def trouble(
    name: str,
    error: Mapping[str, str],
    of: Staged | None = None,
    level: int = logging.ERROR,
    **facts: Any,
) -> None:
    """Say that an error came in between; error: as `errors.describe` gives it."""
    say(name, of, level, {**facts, **error})


def say(name: str, of: Staged | None, level: int, facts: Mapping[str, Any]) -> None:
    if log.isEnabledFor(level):  # rehearsals do a thousand stages a second and are not listened to
        log.log(level, name, extra={"about": named(of) if of else ABOUT.get(), "facts": facts})


@contextmanager
def about(of: Staged) -> Iterator[None]:
    """Lines said in the block, whoever says them, are of this stage."""
    token = ABOUT.set(named(of))
    try:
        yield
    finally:
        ABOUT.reset(token)


def named(of: Staged) -> dict[str, str]:
    key, _, path = str(of).partition(" (")
    return {"stage": of.key[:8], "path": path.removesuffix(")") or key}


class File(logging.FileHandler):
    """A line that cannot be written, on a full disk for one, is lost, and nothing is said of it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass

    def close(self) -> None:
        with suppress(OSError):  # what was not written is tried once more
            super().close()


class Lines(logging.Formatter):
    """A record → one line of JSON."""

    def __init__(self, study: str, worker: dict[str, Any]) -> None:
        super().__init__()
        self.study, self.worker = study, worker

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when.replace("+00:00", "Z"), "level": record.levelname, "event": record.getMessage()}
        line |= {"study": self.study} | getattr(record, "about", ABOUT.get()) | {"worker": self.worker}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # What a fact is called must not hide what every line has.
        line |= {name: fact for name, fact in getattr(record, "facts", {}).items() if name not in line}
        return json.dumps(line, ensure_ascii=False, default=str)


FOLDER = "logs"  # below a study's results


@contextmanager
def of_driver(study: str, out: Path) -> Iterator[None]:
    """The driver's lines, for the length of the block; the terminal stays as it is."""
    with suppress(OSError):
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
    started(study, "driver", out / FOLDER, stdout=False)
    event("begun")
    try:
        yield
    finally:
        event("ended")
        ended()


def started(study: str, worker: str, folder: Path | None, rank: int = 0, stdout: bool = True) -> Path | None:
    """Begin to write this process's lines; the file, where there is one.

    folder: where files go, used where it is there; every process has a file of its own in it.
    stdout: whether lines go there too, with Python's warnings among them.
    """
    ended()
    who = {"name": worker, "rank": rank, "node": socket.gethostname(), "pid": os.getpid()}
    lines, file = Lines(study, who), None
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)] if stdout else []
    if folder and folder.is_dir():
        file = folder / f"{worker}-{rank}-{who['node']}-{who['pid']}.jsonl"
        with suppress(OSError):  # what is done matters more than that it is told
            handlers.append(File(file, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(lines)
        for logger in (log, logging.getLogger("py.warnings")) if stdout else (log,):
            logger.addHandler(handler)
    log.setLevel(logging.WARNING if rank else logging.INFO)  # what all of a group do is told by one
    log.propagate = False
    logging.captureWarnings(stdout)
    return file


def ended() -> None:
    """Write no more lines."""
    logging.captureWarnings(False)
    for logger in (log, logging.getLogger("py.warnings")):
        for handler in list(logger.handlers):
            if isinstance(handler.formatter, Lines):
                logger.removeHandler(handler)
                handler.close()
