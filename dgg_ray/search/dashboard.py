"""A copy of the search for `optuna-dashboard`: written, never read, and made anew by every run.

The search itself is in memory. Whatever happens to the file, and whichever program has it open, the next
setting is the same. A copy that cannot be written is abandoned for this run, with one message.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.storages import RDBStorage

from dgg_ray.core.optional_outputs import OptionalOutputs

NAME = "search.db, the copy of the search for optuna-dashboard,"
WAIT_S = 15.0  # for another program that writes to the file
BESIDE = ("", "-journal", "-wal", "-shm")  # SQLite's files of one database


class Copy:
    """The trials of a study as a database; all of its trouble is the `optional`'s.

    fresh: whether the file is made anew; else the study is added, in place of one of the same name.
    """

    def __init__(
        self,
        of: optuna.Study,
        objectives: Sequence[str],
        file: Path,
        optional: OptionalOutputs,
        fresh: bool = True,
    ) -> None:
        self.of, self.file, self.optional, self.fresh = of, file, optional, fresh
        self.copied: set[int] = set()
        self.study: optuna.Study | None = None
        with optional.attempt(NAME, "is not kept"):
            self.study = self.begin(objectives)

    def begin(self, objectives: Sequence[str]) -> optuna.Study:
        for ending in BESIDE if self.fresh else ():
            self.file.with_name(self.file.name + ending).unlink(missing_ok=True)

        def connect() -> sqlite3.Connection:
            # By its path: as part of a URL, `?`, `%` and `{` in a folder's name would mean something.
            connection = sqlite3.connect(self.file, timeout=WAIT_S, check_same_thread=False)
            connection.execute("PRAGMA synchronous = OFF")  # the next run makes the file anew in any case
            return connection

        storage = RDBStorage("sqlite:///search.db", {"creator": connect})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self.of.study_name in optuna.get_all_study_names(storage):
                optuna.delete_study(study_name=self.of.study_name, storage=storage)
            study = optuna.create_study(
                study_name=self.of.study_name, storage=storage, directions=self.of.directions
            )
            study.set_metric_names(list(objectives))
        return study

    def update(self) -> None:
        """Copy the trials that were finished since."""
        if self.study is None:
            return
        with self.optional.attempt(NAME, "is not kept any further; the next run makes it anew"):
            for trial in self.of.get_trials(deepcopy=False):
                if trial.state.is_finished() and trial.number not in self.copied:
                    self.study.add_trial(trial)
                    self.copied.add(trial.number)
            return
        self.study = None
