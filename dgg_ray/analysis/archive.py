"""Read what a study's store holds besides scores: predictions, training losses, adapters.

Everything is read on request. A run is named as in the study's table: by the id of its setting, its order
(task names joined by " > ") and its seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dgg_ray.analysis import predictions
from dgg_ray.config.study import Study
from dgg_ray.core.errors import ResultsError
from dgg_ray.core.interfaces import Example
from dgg_ray.core.stage import Run, Stage
from dgg_ray.storage import fetching
from dgg_ray.storage.stage_store import StageStore

RunName = tuple[str, str, int]  # setting, order, seed


class StageLosses(NamedTuple):
    """The training loss along one stage; curve: means over equal spans of its steps."""

    task: str
    steps: int
    curve: tuple[float, ...]


class AdapterLocation(NamedTuple):
    """The adapter at the end of a run; path: a PEFT folder or its URL, "" if the adapter was removed."""

    order: str
    seed: int
    path: str


@dataclass(frozen=True)
class Archive:
    """A study's runs, and the store that holds them."""

    study: Study
    store: StageStore
    runs: Mapping[RunName, tuple[Study, Run]]

    @property
    def is_local(self) -> bool:
        """Return whether one access to the store takes microseconds, rather than a request over a network."""
        return self.store.backend.is_local

    def predictions(self, runs: Iterable[RunName], split: str) -> pd.DataFrame:
        """Return every answer in these runs, with PREDICTION_COLUMNS; unfinished stages are left out."""
        known = (self.runs[name] for name in runs if name in self.runs)
        return predictions.predictions_table(self.store, known, split)

    def examples(self, task: str, split: str) -> Mapping[str, Example]:
        """Return id → example, read from the task's own files.

        It is empty where these files are missing, have changed, or are on a remote store.
        """
        reader = self.study.readers[task]
        paths = [getattr(reader, field.name) for field in fields(reader)]
        if all(fetching.needs_no_fetch(path) for path in paths if isinstance(path, Path)):
            return predictions.examples_by_id(self.study, task, split)
        return {}

    def losses(self, run: RunName) -> list[StageLosses]:
        """Return the losses of a run, stage by stage; stages without stored losses are left out."""
        stages = self.runs[run][1].stages if run in self.runs else ()
        losses = []
        for stage in stages:
            record = self.store.record(stage)
            if record and (curve := record.get("loss", {}).get("curve")):
                losses.append(StageLosses(stage.task, record["cost"]["steps"], tuple(curve)))
        return losses

    def adapters(self, setting: str) -> Iterator[AdapterLocation]:
        """Yield the final adapter of every finished run of a setting."""
        for (run_setting, order, seed), (_, run) in self.runs.items():
            if run_setting == setting and run.stages and self.store.record(run.stages[-1]):
                yield AdapterLocation(order, seed, self.store.adapter_url(run.stages[-1]))

    def stage_folder(self, stage: Stage) -> Path:
        """Return the files of a finished stage with an adapter; ResultsError says why there is none."""
        if self.store.record(stage) is None:
            raise ResultsError(f"stage {stage} is not finished; run the study again to have it")
        # Asked before the files are opened: to open what lacks its adapter would end in its quarantine.
        if not self.store.adapter_url(stage):
            if self.study.workers.engine == "simulated":
                raise ResultsError(f"stage {stage} has no adapter: its study was simulated")
            forget = f'r = dgg_ray.open(DIR); r.study.store(r.out).discard("{stage.key}")'
            raise ResultsError(
                f"stage {stage} has no adapter: `dgg-ray gc` removed it. To train it again, let the store "
                f"forget the stage, in Python: `{forget}`; then run the study again"
            )
        if (folder := self.store.open(stage)) is None:
            raise ResultsError(f"stage {stage} was damaged; run the study again to have it")
        return folder


def blocks_of(runs: Iterable[tuple[Study, Run]]) -> list[tuple[str, int]]:
    """Return the block (order, seed) of each run."""
    return [(order_name(run.order), run.seed) for _, run in runs]


def order_name(order: str | Sequence[str]) -> str:
    """Return the name of an order: its tasks joined by " > "."""
    return order if isinstance(order, str) else " > ".join(order)
