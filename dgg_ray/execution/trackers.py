"""TensorBoard, MLflow and Weights & Biases are told of every setting, through Ray Tune's own callbacks.

    output: {trackers: [tensorboard, mlflow, wandb]}

    tracked run    a setting that the search judged, by its id; or one of the final comparison, `final-ID`
    parameters     its searched values
    a point        after each finished stage: `stages` so far; `score`, over the runs begun the mean of their
                   last stage's mean score; `score/TASK`, the same of each task; on the split of the judgement
    at the end     every metric in metrics/, its mean over the blocks

A trial of Ray Tune is no more than one question of a search, and in a single process there are none. So what
is told is read off the store, whoever left it there: the same with Ray and without, and of settings that the
store answered. What was told is kept in OUT/trackers/told.json: a study that is run again goes on with the
same tracked runs and repeats none.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.logger import LoggerCallback

from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.fence import Fence
from dgg_ray.core.interfaces import ScoreMatrix
from dgg_ray.core.stage import WorkItem
from dgg_ray.search import evidence
from dgg_ray.storage import manifest
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import at_once

if TYPE_CHECKING:
    from dgg_ray.search.base import Method

FOLDER, TOLD = "trackers", "told.json"
LOOKING = 0.05  # most of a study's time that may go into looking at its store
END_S = 5.0  # that trackers are waited for where a study is ended by an error, or by Ctrl-C
NO_MORE = "is told no more of this study"
EVERY = "every tracker"
Place = tuple[str, int, str]  # order, seed, stage's key


@dataclass(eq=False)
class Tracked:
    """A tracked run, as Ray's callbacks see a trial: `trial_id` to `evaluated_params`.

    at: the study at the setting; split: on which it is judged.
    works: what is asked for, by (order, seed, stage's key); told: those that trackers know, in that order.
    given_up: whether no more of it will come.
    """

    trial_id: str
    name: str
    config: dict[str, Any]
    local_path: str
    at: Study
    split: str
    work_items: dict[Place, WorkItem]
    given_up: Callable[[], bool] = lambda: False
    told: list[Place] = field(default_factory=list)
    experiment_dir_name: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return self.config

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def news(self, store: StageStore) -> list[Place]:
        """What was finished since, with all its exams."""
        known = set(self.told)
        return [place for place, item in self.work_items.items() if place not in known and store.has(item)]

    def state(self, store: StageStore) -> str:
        """`open`, `ended`, or `failed` where a stage of it did."""
        left = [item for place, item in self.work_items.items() if place not in set(self.told)]
        if any(store.failure(item.stage) for item in left):
            return "failed"
        return "open" if left and not self.given_up() else "ended"

    def matrices(self, store: StageStore) -> Iterator[tuple[tuple[str, ...], ScoreMatrix]]:
        """(Order, R) of each run, with what was told of it."""
        told = set(self.told)
        for run in self.at.runs():
            scores = evidence.matrix(self.at, store, run, self.split)
            for t, stage in enumerate(run.stages, start=len(run.order) - len(run.stages)):
                if (" > ".join(run.order), run.seed, stage.key) not in told:
                    scores.R[t] = np.nan
            yield run.order, scores

    def point(self, store: StageStore) -> dict[str, float]:
        """What is told after a stage."""
        means: list[float] = []
        tasks: dict[str, list[float]] = {name: [] for name in self.at.names}
        for order, scores in self.matrices(store):
            begun = np.flatnonzero(~np.isnan(scores.R).all(axis=1))
            if len(begun):
                row = scores.R[begun[-1]]
                means.append(float(np.nanmean(row)))
                for name, score in zip(order, row.tolist(), strict=True):
                    tasks[name] += [score] * (score == score)  # nan is not itself
        found = {f"score/{name}": float(np.mean(of)) for name, of in tasks.items() if of}
        return {"stages": len(self.told)} | ({"score": float(np.mean(means))} if means else {}) | found

    def metrics(self, store: StageStore) -> dict[str, float]:
        """Every metric, its mean over the runs that have it."""
        matrices, found = [scores for _, scores in self.matrices(store)], {}
        for name in plugins.names("metrics"):
            values = np.array([plugins.find("metrics", name)(scores) for scores in matrices])
            if not np.isnan(values).all():
                found[name] = float(np.nanmean(values))
        return found


class Tracking:
    """Tells trackers what the store has of a study; one that cannot be told is dropped with a warning."""

    def __init__(
        self,
        study: Study,
        store: StageStore,
        out: Path,
        callbacks: Mapping[str, LoggerCallback],
        fence: Fence | None = None,
    ) -> None:
        self.study, self.store, self.folder = study, store, out / FOLDER
        self.callbacks, self.fence = dict(callbacks), fence or Fence()
        self.known: dict[str, dict[str, Any]] = manifest.noted(self.folder / TOLD) or {}
        self.open: dict[str, Tracked] = {}
        self.searches: list[tuple[Method, set[int]]] = []  # with the numbers of the queries looked at
        self.next_look = 0.0

    @property
    def telling(self) -> bool:
        """Whether any tracker is still told: a look that failed was the last."""
        return bool(self.callbacks) and EVERY not in self.fence.lost

    def follow(self, search: Method) -> None:
        """Track every whole setting that the search proposes."""
        self.searches += [(search, set())] * self.telling

    def compare(self, compared_settings: Mapping[str, Study]) -> None:
        """Track what is compared in the end."""
        if not self.telling:
            return
        with self.fence(EVERY, NO_MORE):
            seen = at_once(self.store)
            for label, at in compared_settings.items():
                config = {"strategy": plugins.name_of(at.strategy), "comparison": label}
                self.begin(
                    seen, f"final-{at.id}", label, config, at, "test", evidence.FINAL, at.protocol.evaluate
                )

    def look(self, last: bool = False) -> None:
        """Tell what was finished since the last look, when that was long enough ago for its price.

        last: whatever its price; what came after an earlier look is told now, point by point."""
        began = time.monotonic()
        if not self.telling or (began < self.next_look and not last):
            return
        with self.fence(EVERY, NO_MORE):
            self.take_up()
        now = time.monotonic()
        self.next_look = now + (now - began) / LOOKING

    def take_up(self) -> None:
        """Begin what was proposed since, and tell what was finished."""
        seen = at_once(self.store)
        for search, looked_at in self.searches:
            for number, query in enumerate(list(search.proposed)):
                if number not in looked_at and query.block is None and query.depth == len(self.study.names):
                    at, given_up = self.study.at(query.setting), lambda s=search, n=number: n in s.told
                    self.begin(seen, at.id, at.id, dict(query.setting), at, given_up=given_up)
                looked_at.add(number)
        for run in list(self.open.values()):
            self.tell(run, seen)

    def begin(
        self,
        seen: StageStore,
        id: str,
        name: str,
        config: dict[str, Any],
        at: Study,
        split: str = "",
        splits: tuple[str, ...] = (),
        scope: str = "seen",
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        known = self.known.setdefault(id, {"told": [], "ended": False})
        if known["ended"] or id in self.open:
            return
        work_items = {
            (" > ".join(run.order), run.seed, item.stage.key): item
            for run in at.runs()
            for item in evidence.work_items(at, run, splits, scope)
        }
        folder = str(self.folder / "tensorboard" / id)
        split, told = split or at.protocol.selection_split, [(o, s, k) for o, s, k in known["told"]]
        run = Tracked(id, name, config, folder, at, split, work_items, given_up, told, self.study.name)
        self.open[id] = run
        self.each(lambda callback: resume(callback, run, known))
        self.tell(run, seen)

    def tell(self, run: Tracked, seen: StageStore) -> None:
        news = run.news(seen)
        for place in news:
            run.told.append(place)
            self.result(run, run.point(seen))
        state = run.state(seen)
        if state == "ended" and run.told:
            self.result(run, run.metrics(seen))
        if state != "open":
            self.each(lambda callback: callback.log_trial_end(run, failed=state == "failed"))  # pyright: ignore
            del self.open[run.trial_id]
        if news or state != "open":
            self.known[run.trial_id] |= {"told": run.told, "ended": state == "ended"}
            manifest.note(self.folder / TOLD, self.known)

    def end(self) -> None:
        """Of what is still open, TensorBoard's files are written out; a later run adds to them."""
        if writer := self.callbacks.get("tensorboard"):
            with self.fence("tensorboard", NO_MORE):
                for run in self.open.values():
                    writer.log_trial_end(run)  # pyright: ignore
        self.each(lambda callback: callback.on_experiment_end([]))

    def result(self, run: Tracked, found: dict[str, float]) -> None:
        at = len(run.told)
        found = {**found, "training_iteration": at}
        self.each(lambda callback: callback.log_trial_result(at, run, dict(found)))  # pyright: ignore

    def each(self, do: Callable[[LoggerCallback], None]) -> None:
        for name, callback in list(self.callbacks.items()):
            with self.fence(name, NO_MORE):
                do(callback)
                continue
            del self.callbacks[name]


def resume(callback: LoggerCallback, run: Tracked, known: dict[str, Any]) -> None:
    """Begin a tracked run, or go on with the one that was begun for it in an earlier run of the study."""
    runs = getattr(callback, "_trial_runs", None)  # MLflow's: it finds a run by its id alone
    if runs is not None and "mlflow" in known:
        runs[run] = known["mlflow"]
    callback.log_trial_start(run)  # pyright: ignore
    if runs is not None:
        known["mlflow"] = runs[run]


@contextmanager
def tracking(
    study: Study, store: StageStore, out: Path, start: Callable[[], Any], fence: Fence | None = None
) -> Iterator[Tracking]:
    """The trackers that the study names, for the length of the block. start: makes sure that Ray runs.

    fence: for their trouble, which is none of the study's."""
    callbacks: dict[str, LoggerCallback] = {}
    fence = fence or Fence()
    for name in study.output.trackers:
        with fence(name, NO_MORE):
            if name == "wandb":
                start()  # each of its runs is told by an actor
            callbacks[name] = MADE[name](study, out)
    found = Tracking(study, store, out, callbacks, fence)
    found.each(lambda callback: callback.setup())
    try:
        yield found
    except BaseException:  # no time for a look: what was not told is told when the study goes on
        ending = threading.Thread(target=found.end, daemon=True)
        ending.start()
        ending.join(END_S)
        raise
    found.look(last=True)
    found.end()


def tensorboard(study: Study, out: Path) -> LoggerCallback:
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()


def mlflow(study: Study, out: Path) -> LoggerCallback:
    """At MLFLOW_TRACKING_URI, else in a database in the results' folder; the study is the experiment."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default a study waits minutes for each
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out / FOLDER / 'mlflow.db'}"
    return MLflowLoggerCallback(place, experiment_name=study.name, tags={"study": study.name})


def wandb(study: Study, out: Path) -> LoggerCallback:
    """In the project WANDB_PROJECT_NAME, else `dgg_ray`; the study is the group."""
    from ray.air.integrations.wandb import WandbLoggerCallback

    project = os.environ.get("WANDB_PROJECT_NAME") or "dgg_ray"
    return WandbLoggerCallback(project, study.name, resume="allow")


MADE = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}
