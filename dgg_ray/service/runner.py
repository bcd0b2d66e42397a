"""The process that runs studies for the service, one after another.

    python -m dgg_ray.service.runner ID OPTIONS

It reads from the journal which study it was given, runs it as `dgg-ray run` does, and adds how it ended. It
knows no server: servers may end and start while it runs. Its lease in the store says that it is alive; when
that has gone, a server lets its study wait again, and the study goes on from its finished stages.

After a study it waits IDLE_S for the next one, with Ray and its worker groups started (execution/), and ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgg_ray.core.errors import DggError, StudyError
from dgg_ray.core.interrupts import interrupt
from dgg_ray.service import checks
from dgg_ray.service.journal import Journal
from dgg_ray.service.state import Event, State, Submitted
from dgg_ray.storage import leases
from dgg_ray.storage.lease_keeper import LeaseKeeper
from dgg_ray.storage.leases import LeaseOwner
from dgg_ray.storage.stage_store import StageStore, open_store

POLL_S = 0.5  # between looks at the journal, of a local store
IDLE_S = 600.0  # without a study, until the runner ends
LOG_EVERY_S = 5.0  # between copies of a study's output into the store
LOG_BYTES = 200_000  # of the end of a study's output, which the store keeps


def lease_key(runner: str) -> str:
    return f"runners-{runner}"


def studies_folder(root: Path) -> Path:
    """The folder of all studies' results: apart from the store and the caches, whatever a study's name."""
    return root.absolute() / "studies"


def results_folder(root: Path, study: str) -> Path:
    return studies_folder(root) / study


def log_name(study: str) -> str:
    return f"service/logs/{study}"


class StudyRunner:
    """Runs the studies that the journal gives to the runner with this id.

    root: folder of the results. address: of a Ray cluster; None starts Ray on this machine.
    """

    def __init__(
        self,
        runner: str,
        rules: checks.Rules,
        root: Path,
        address: str | None = None,
        local: bool = False,
        idle_s: float = IDLE_S,
    ) -> None:
        self.id, self.rules, self.root, self.address = runner, rules, root, address
        self.local, self.idle_s = local, idle_s
        self.store: StageStore = open_store(rules.store)
        self.journal = Journal(self.store.backend)
        self.asked_to_stop = False  # rather than by a signal from outside
        self.session: Any = None  # Ray and worker groups, from one study to the next

    def run(self) -> None:
        """Run studies until none has come for a while."""
        owner = LeaseOwner.this_process()
        keeper = LeaseKeeper(self.store, owner)
        if keeper.acquire(lease_key(self.id)) is not None:
            raise DggError(f"runner {self.id} runs already")
        try:
            self.journal.commit(
                lambda state: {
                    "kind": "runner ready",
                    "by": "runner",
                    "runner": self.id,
                    "owner": asdict(owner),
                }
            )
            from dgg_ray.execution.session import RaySession  # late: it imports Ray

            with RaySession(self.address) as self.session:
                self._run_studies()
        finally:
            keeper.close()

    def _run_studies(self) -> None:
        last = time.monotonic()
        while True:
            state = self.journal.catch_up(at_once=False)
            study = self._given(state)
            if study is not None:
                self.run_study(study)
                last = time.monotonic()
            elif time.monotonic() - last >= self.idle_s and self._retire():
                return
            else:
                time.sleep(POLL_S)

    def _given(self, state: State) -> Submitted | None:
        """The study that this runner was given."""
        runner = state.runners.get(self.id)
        study = state.studies.get(runner.study) if runner else None
        return study if study and study.runner == self.id else None

    def _retire(self) -> bool:
        """Leave the service, unless it gave a study to this runner meanwhile."""

        def decide(state: State) -> Event | None:
            if self._given(state):
                return None
            return {"kind": "runner gone", "by": "runner", "runner": self.id}

        return self.journal.commit(decide) is not None

    # -- one study ---------------------------------------------------------------------------------

    def run_study(self, study: Submitted) -> None:
        """Run a study to its end, and add how it ended."""
        out, how, message = results_folder(self.root, study.name), "failed", ""
        before = self._spent(study.name)
        self._add(study, {"kind": "began"})
        with self._output(study.name, out):
            try:
                with self._stopped_on_request(study.name):
                    failed = self._run(study, out)
                how = "failed" if failed else "finished"
                message = failed
            except KeyboardInterrupt:
                if not self.asked_to_stop:
                    raise  # the runner is being ended: its study waits for another one
                how = "stopped"
            except StudyError as error:
                message = str(error)
            except Exception as error:  # whatever ends one study must not end the runner
                message = f"{type(error).__name__}: {error}"
            if message:
                print(message, file=sys.stderr)
        spent = {unit: amount - before.get(unit, 0.0) for unit, amount in self._spent(study.name).items()}
        self._add(study, {"kind": "ended", "how": how, "message": message[:2000], "spent": spent})

    def _run(self, study: Submitted, out: Path) -> str:
        """Run the study; return what failed in it, in words."""
        from dgg_ray import api  # late: it needs pandas

        loaded = checks.load_text(study.text, self.rules)
        api.check(loaded)
        session = None if self.local else self.session
        outcome = api.run_checked_study(loaded, out, self.local, quiet=False, session=session)
        print(outcome)
        count = outcome.tally.get("failed", 0) or len(outcome.results.failures)
        return f"{count} stage{'s' * (count != 1)} failed" if count else ""

    def _add(self, study: Submitted, facts: Event) -> None:
        """Add an event about the study, unless it is no longer this runner's."""

        def decide(state: State) -> Event | None:
            now = state.studies.get(study.name)
            if now is None or now.runner != self.id or now.run != study.run:
                return None
            return {"by": "runner", "study": study.name, **facts}

        self.journal.commit(decide)

    def _spent(self, name: str) -> dict[str, float]:
        with suppress(DggError, OSError):
            return checks.spent_of(name, self.rules)
        return {}

    @contextmanager
    def _stopped_on_request(self, name: str) -> Iterator[None]:
        """In the block, interrupt the main thread as Ctrl-C does once the study was asked to stop."""
        over, self.asked_to_stop = threading.Event(), False
        main = threading.main_thread().ident

        def watch() -> None:
            while not over.wait(POLL_S):
                with suppress(DggError, OSError):  # the store may answer again at the next look
                    state = self.journal.catch_up(at_once=False)
                    study = state.studies.get(name)
                    lost = study is None or study.runner != self.id
                    if (lost or (study and study.state == "stopping")) and not over.is_set():
                        assert main
                        self.asked_to_stop = True
                        signal.pthread_kill(main, signal.SIGINT)
                        return

        thread = threading.Thread(target=watch, name="stop watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(POLL_S + 1)

    @contextmanager
    def _output(self, name: str, out: Path) -> Iterator[None]:
        """In the block, what this process and its children print goes to a file, and its end to the store."""
        out.mkdir(parents=True, exist_ok=True)
        file, over = out / "output.log", threading.Event()
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        with file.open("ab", buffering=0) as opened:
            os.dup2(opened.fileno(), 1)
            os.dup2(opened.fileno(), 2)

        def publish() -> None:
            while not over.wait(LOG_EVERY_S):
                self._publish_log(name, file)

        thread = threading.Thread(target=publish, name="log", daemon=True)
        thread.start()
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            over.set()
            thread.join(LOG_EVERY_S)
            self._publish_log(name, file)

    def _publish_log(self, name: str, file: Path) -> None:
        with suppress(DggError, OSError), file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - LOG_BYTES))
            text = opened.read().decode("utf-8", errors="replace")
            self.store.put_document(log_name(name), {"at": time.time(), "text": text})


def is_alive(store: StageStore, runner: str) -> bool:
    """Return whether the runner holds its lease."""
    return leases.owner_of(store.backend, lease_key(runner)) is not None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dgg_ray.service.runner", description=__doc__)
    parser.add_argument("id")
    parser.add_argument("--store", required=True)
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--allow", action="append", default=[])
    parser.add_argument("--ray-address")
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--idle-seconds", type=float, default=IDLE_S)
    o = parser.parse_args(arguments)
    rules = checks.Rules(o.store, o.data, tuple(o.allow), str(studies_folder(o.root)))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)  # finished stages are kept, groups are ended
    StudyRunner(o.id, rules, o.root, o.ray_address, o.local, o.idle_seconds).run()


if __name__ == "__main__":
    main()
