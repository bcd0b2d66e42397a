"""Records that a study's store holds beside scores: predictions, training losses, adapters.

Nothing is read before it is asked for. A run is named as in the study's table: by the id of its setting, its
order (task names joined by " > ") and its seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dgg_ray.analysis import predictions
from dgg_ray.config.study import Study
from dgg_ray.core.interfaces import Example
from dgg_ray.core.stage import Run
from dgg_ray.storage import fetching
from dgg_ray.storage.stage_store import StageStore

Name = tuple[str, str, int]  # setting, order, seed


class Losses(NamedTuple):
    """The training loss along one stage; curve: means over equal spans of its steps."""

    task: str
    steps: int
    curve: tuple[float, ...]


class Placed(NamedTuple):
    """The adapter that a run ends with; path: a PEFT folder or its URL, "" where it was removed."""

    order: str
    seed: int
    path: str


@dataclass(frozen=True)
class Archive:
    """The runs of a study with the store that they are in."""

    study: Study
    store: StageStore
    runs: Mapping[Name, tuple[Study, Run]]

    @property
    def near(self) -> bool:
        """Whether a look into the store costs next to nothing."""
        return self.store.objects.near

    def predictions(self, runs: Iterable[Name], split: str) -> pd.DataFrame:
        """Every answer in these runs, see predictions.COLUMNS; stages that are not finished are left out."""
        return predictions.predictions(self.store, (self.runs[n] for n in runs if n in self.runs), split)

    def examples(self, task: str, split: str) -> Mapping[str, Example]:
        """Id → example, from the task's own files; {} where they are gone, have changed, or lie far away."""
        reader = self.study.readers[task]
        paths = [getattr(reader, f.name) for f in fields(reader)]
        if all(fetching.at_hand(path) for path in paths if isinstance(path, Path)):
            return predictions.examples(self.study, task, split)
        return {}

    def losses(self, run: Name) -> list[Losses]:
        """Stage by stage; those whose losses were not kept are left out."""
        stages = self.runs[run][1].stages if run in self.runs else ()
        records = ((stage, self.store.record(stage)) for stage in stages)
        return [
            Losses(stage.task, record["cost"]["steps"], tuple(curve))
            for stage, record in records
            if record and (curve := record.get("loss", {}).get("curve"))
        ]

    def adapters(self, setting: str) -> Iterator[Placed]:
        """Of every finished run of a setting."""
        for (own, order, seed), (_, run) in self.runs.items():
            if own == setting and run.stages and self.store.record(run.stages[-1]):
                yield Placed(order, seed, self.store.adapter(run.stages[-1]))
