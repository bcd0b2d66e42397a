"""The event log: one JSON object a line for each event, with its time, study, stage and worker.

    {"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "event": "trained", "study": "quickstart",
     "stage": "1a2b3c4d", "path": "digits > words", "loss": 0.31, "seconds": 12.5,
     "worker": {"name": "group-001", "rank": 0, "node": "gpu-7", "pid": 4711}}

    event                written by      facts
    started              all             machine_type, of a worker
    ended                driver, worker  –
    fetching             driver, worker  url, files, bytes: data or a model
    fetched              driver, worker  url, seconds
    assigned             broker          group: the worker group that trains the item
    refused              broker, driver  error, message: the budget has no room for the item
    resumed              worker          step: from a mid-stage checkpoint
    checkpoint           worker          step
    trained              worker          loss, steps, seconds
    evaluated            worker          scores by "task split"
    published            worker          –
    failed               driver, worker  error, message, traceback
    failure not stored   broker          error, message: the failure could not be written to the store
    cost not read        broker          error, message: a stage's cost; the budget counts it as lost
    lease lost           broker, driver  key, to: another driver trains the stage now
    lease not renewed    broker          key, error, message: the store could not be reached
    lease access failed  broker, driver  key, error, message: a lease was not renewed or released
    worker group lost    broker          group
    worker group failed  driver          group, error: its workers are gone
    given up             driver          reason: no worker group can be started
    cluster not readable driver          error, message: the cluster's resources are unknown
    display failed       driver          error, message
    output failed        driver          output, error, message, traceback: see optional_outputs.py
    base model not kept  worker          –: a study changed it, and the next one loads it anew
    hardware check       worker          machine_type, reference, scores: see hardware_check.py; or an error

The driver writes to OUT/logs. Brokers and workers write to standard output, which Ray keeps, and to that
folder where they can reach it. `stage` and `path` are empty for events that concern no stage.
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


class HasStageKey(Protocol):
    """A stage, or a work item on one."""

    @property
    def key(self) -> Any: ...  # a str; the type checker does not see that through a cached property


log = logging.getLogger("dgg_ray")
log.addHandler(logging.NullHandler())  # nothing is written before `start_logging`

LOG_FOLDER = "logs"  # below a study's results
NO_STAGE: dict[str, str] = {"stage": "", "path": ""}
CURRENT_STAGE: ContextVar[dict[str, str]] = ContextVar("CURRENT_STAGE", default=NO_STAGE)


def log_event(name: str, stage: HasStageKey | None = None, level: int = logging.INFO, **facts: Any) -> None:
    """Log an event of a stage; of the current stage where none is given."""
    _log(name, stage, level, facts)


def log_error(
    name: str,
    error: Mapping[str, str],
    stage: HasStageKey | None = None,
    level: int = logging.ERROR,
    **facts: Any,
) -> None:
    """Log an event that an error caused; error: as `errors.error_record` gives it."""
    _log(name, stage, level, {**facts, **error})


def _log(name: str, stage: HasStageKey | None, level: int, facts: Mapping[str, Any]) -> None:
    if log.isEnabledFor(level):  # simulations train a thousand stages a second without a log
        about = stage_fields(stage) if stage else CURRENT_STAGE.get()
        log.log(level, name, extra={"about": about, "facts": facts})


@contextmanager
def stage_context(stage: HasStageKey) -> Iterator[None]:
    """Attribute every line logged in the block to this stage."""
    token = CURRENT_STAGE.set(stage_fields(stage))
    try:
        yield
    finally:
        CURRENT_STAGE.reset(token)


def stage_fields(stage: HasStageKey) -> dict[str, str]:
    """Return a line's `stage` and `path`."""
    key, _, path = str(stage).partition(" (")
    return {"stage": stage.key[:8], "path": path.removesuffix(")") or key}


class EventFileHandler(logging.FileHandler):
    """Writes lines to a file; drops, silently, a line that cannot be written (a full disk)."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass

    def close(self) -> None:
        with suppress(OSError):  # closing retries what could not be written
            super().close()


class JsonLineFormatter(logging.Formatter):
    """Formats a log record as one line of JSON."""

    def __init__(self, study: str, worker: dict[str, Any]) -> None:
        super().__init__()
        self.study, self.worker = study, worker

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when.replace("+00:00", "Z"), "level": record.levelname, "event": record.getMessage()}
        line |= (
            {"study": self.study} | getattr(record, "about", CURRENT_STAGE.get()) | {"worker": self.worker}
        )
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # A fact must not hide a field that every line has.
        line |= {name: fact for name, fact in getattr(record, "facts", {}).items() if name not in line}
        return json.dumps(line, ensure_ascii=False, default=str)


@contextmanager
def driver_log(study: str, out: Path) -> Iterator[None]:
    """Write the driver's events for the length of the block; nothing goes to the terminal."""
    with suppress(OSError):
        (out / LOG_FOLDER).mkdir(parents=True, exist_ok=True)
    start_logging(study, "driver", out / LOG_FOLDER, stdout=False)
    log_event("started")
    try:
        yield
    finally:
        log_event("ended")
        stop_logging()


def start_logging(
    study: str, worker: str, folder: Path | None, rank: int = 0, stdout: bool = True
) -> Path | None:
    """Start to write this process's events; return the log file, if there is one.

    folder: where log files go, if it exists; each process writes a file of its own there.
    stdout: whether to write to standard output too, with Python's warnings.
    """
    stop_logging()
    process = {"name": worker, "rank": rank, "node": socket.gethostname(), "pid": os.getpid()}
    formatter, file = JsonLineFormatter(study, process), None
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)] if stdout else []
    if folder and folder.is_dir():
        file = folder / f"{worker}-{rank}-{process['node']}-{process['pid']}.jsonl"
        with suppress(OSError):  # a run without a log is better than none
            handlers.append(EventFileHandler(file, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(formatter)
        for logger in (log, logging.getLogger("py.warnings")) if stdout else (log,):
            logger.addHandler(handler)
    log.setLevel(logging.WARNING if rank else logging.INFO)  # rank 0 logs what all ranks of a group do
    log.propagate = False
    logging.captureWarnings(stdout)
    return file


def stop_logging() -> None:
    """Stop writing events, and close the log file."""
    logging.captureWarnings(False)
    for logger in (log, logging.getLogger("py.warnings")):
        for handler in list(logger.handlers):
            if isinstance(handler.formatter, JsonLineFormatter):
                logger.removeHandler(handler)
                handler.close()
