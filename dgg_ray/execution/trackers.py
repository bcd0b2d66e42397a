"""Experiment trackers: TensorBoard, MLflow and Weights & Biases get every setting, by their own clients.

    output: {trackers: [tensorboard, mlflow, wandb]}

    tracked run    a setting of the search, by its id; or one of the final comparison, `final-ID`
    parameters     the setting's values
    a point        after each finished stage, with the number of `stages` so far. `score`: the mean, over the
                   runs begun, of their last stage's mean score. `score/TASK`: the same for one task. Both are
                   on the split that selects settings, or on the test split in the final comparison
    at the end     every metric in metrics/, its mean over the blocks

Points are read from the store. So they are the same with Ray and in one process, and for settings whose
stages an earlier run left there. What was reported is kept in OUT/trackers/reported.json. So a study that is
run again continues the same tracked runs and repeats no point.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dgg_ray.config.study import Study, StudyRuns
from dgg_ray.core import plugins
from dgg_ray.core.json_files import read_json, write_json
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.core.stage import Run, Stage, WorkItem
from dgg_ray.search.comparison import SPLITS
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import view_if_remote

if TYPE_CHECKING:
    from dgg_ray.search.base import SearchMethod

FOLDER, REPORTED = "trackers", "reported.json"
READ_SHARE = 0.05  # of a study's time, at most, goes into reading its store for the trackers
END_S = 5.0  # for which a study that ends with an error, or by Ctrl-C, waits for its trackers
EVERY_TRACKER = "every tracker"
STOPPED = "gets no further updates of this study"


class StageOfRun(NamedTuple):
    """A stage in one of a setting's runs. order: task names joined by " > "; key: the stage's."""

    order: str
    seed: int
    key: str

    @classmethod
    def of(cls, run: Run, stage: Stage) -> StageOfRun:
        return cls(" > ".join(run.order), run.seed, stage.key)


def never() -> bool:
    return False


@dataclass(eq=False)
class TrackedRun:
    """A setting, as trackers see it.

    split: of the scores. work_items: all that the setting's runs consist of.
    reported: stages that the trackers have, in that order.
    is_over: whether the search evaluates no more of it, as after pruning.
    """

    id: str
    name: str
    parameters: dict[str, Any]
    runs: StudyRuns
    split: str
    work_items: dict[StageOfRun, WorkItem]
    is_over: Callable[[], bool] = never
    reported: list[StageOfRun] = field(default_factory=list)

    @property
    def step(self) -> int:
        return len(self.reported)

    def unreported(self) -> dict[StageOfRun, WorkItem]:
        known = set(self.reported)
        return {stage: item for stage, item in self.work_items.items() if stage not in known}

    def news(self, store: StageStore) -> list[StageOfRun]:
        """Unreported stages that the store holds with all their evaluations."""
        return [stage for stage, item in self.unreported().items() if store.has(item)]

    def state(self, store: StageStore) -> str:
        """`open`, `ended`, or `failed` where one of the stages failed."""
        unreported = self.unreported().values()
        if any(store.failure(item.stage) for item in unreported):
            return "failed"
        return "open" if unreported and not self.is_over() else "ended"

    def score_matrices(self, store: StageStore) -> Iterator[tuple[tuple[str, ...], ScoreMatrix]]:
        """(Order, R) of each run, with the reported stages alone."""
        reported, reader = set(self.reported), EvidenceReader(self.runs.study, store)
        for run in self.runs:
            scores = reader.score_matrix(self.runs, run, self.split)
            for t, stage in enumerate(run.stages, start=len(run.order) - len(run.stages)):
                if StageOfRun.of(run, stage) not in reported:
                    scores.R[t] = scores.outside[t] = np.nan
            yield run.order, scores

    def point(self, store: StageStore) -> dict[str, float]:
        """The values after the last reported stage."""
        run_means: list[float] = []
        outside = self.runs.study.evaluate_only
        task_scores: dict[str, list[float]] = {name: [] for name in self.runs.study.readers}
        for order, scores in self.score_matrices(store):
            evaluated = np.flatnonzero(~np.isnan(scores.R).all(axis=1))
            if not len(evaluated):
                continue
            last_row = scores.R[evaluated[-1]]
            run_means.append(float(np.nanmean(last_row)))
            last_scores = [*last_row.tolist(), *scores.outside[evaluated[-1]].tolist()]
            for name, score in zip((*order, *outside), last_scores, strict=True):
                if not math.isnan(score):
                    task_scores[name].append(score)
        values = {"stages": float(self.step)}
        if run_means:
            values["score"] = float(np.mean(run_means))
        values |= {f"score/{name}": float(np.mean(scores)) for name, scores in task_scores.items() if scores}
        return values

    def metrics(self, store: StageStore) -> dict[str, float]:
        """Every metric: its mean over the runs that have it."""
        matrices = [scores for _, scores in self.score_matrices(store)]
        means: dict[str, float] = {}
        for name in plugins.names("metrics"):
            values = np.array([plugins.find("metrics", name)(scores) for scores in matrices])
            if not np.isnan(values).all():
                means[name] = float(np.nanmean(values))
        return means


# -- clients ---------------------------------------------------------------------------------------


class Tracker(ABC):
    """A client of one experiment tracker. Every method may raise: the tracker is then dropped."""

    @abstractmethod
    def start_run(self, run: TrackedRun, state: dict[str, Any]) -> None:
        """Start a tracked run, or continue the one that an earlier run of the study started.

        state: what the tracker keeps of the tracked run between runs of the study, as JSON.
        """

    @abstractmethod
    def log(self, run: TrackedRun, values: Mapping[str, float]) -> None:
        """Log values at the run's present step."""

    @abstractmethod
    def end_run(self, run: TrackedRun, failed: bool) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Write out what is buffered; tracked runs that are still open are continued by a later run."""


class TensorBoardTracker(Tracker):
    """Event files in OUT/trackers/tensorboard/ID, with the parameters as hparams."""

    def __init__(self, study: Study, out: Path) -> None:
        self.folder = out / FOLDER / "tensorboard"
        self.writers: dict[str, Any] = {}
        self.last_values: dict[str, dict[str, float]] = {}

    def start_run(self, run: TrackedRun, state: dict[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        self.writers[run.id] = SummaryWriter(str(self.folder / run.id))

    def log(self, run: TrackedRun, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writers[run.id].add_scalar(name, value, global_step=run.step)
        self.writers[run.id].flush()
        self.last_values.setdefault(run.id, {}).update(values)

    def end_run(self, run: TrackedRun, failed: bool) -> None:
        from tensorboardX.summary import hparams

        writer, values = self.writers.pop(run.id), self.last_values.pop(run.id, {})
        if run.parameters and values:
            parameters = {name: hparam_value(value) for name, value in run.parameters.items()}
            for summary in hparams(hparam_dict=parameters, metric_dict=values):
                writer.file_writer.add_summary(summary)
        writer.close()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def hparam_value(value: Any) -> bool | float | str:
    """A parameter's value as TensorBoard takes it."""
    return value if isinstance(value, bool | int | float | str) else str(value)


class MlflowTracker(Tracker):
    """At MLFLOW_TRACKING_URI, else in OUT/trackers/mlflow.db; the study is the experiment."""

    def __init__(self, study: Study, out: Path) -> None:
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"
        )  # by default each call retries for minutes
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out / FOLDER / 'mlflow.db'}"
        self.study, self.client = study.name, MlflowClient(uri)
        experiment = self.client.get_experiment_by_name(study.name)
        self.experiment_id = (
            experiment.experiment_id if experiment else self.client.create_experiment(study.name)
        )
        self.run_ids: dict[str, str] = {}

    def start_run(self, run: TrackedRun, state: dict[str, Any]) -> None:
        if "run_id" in state:
            self.client.update_run(state["run_id"], status="RUNNING")
        else:
            tags = {"study": self.study}
            created = self.client.create_run(self.experiment_id, tags=tags, run_name=run.name)
            state["run_id"] = created.info.run_id
        self.run_ids[run.id] = state["run_id"]
        for name, value in run.parameters.items():
            self.client.log_param(state["run_id"], name, value)

    def log(self, run: TrackedRun, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run_ids[run.id], name, value, step=run.step)

    def end_run(self, run: TrackedRun, failed: bool) -> None:
        self.client.set_terminated(self.run_ids.pop(run.id), "FAILED" if failed else "FINISHED")

    def close(self) -> None:
        """Do nothing: the client buffers nothing."""


class WandbTracker(Tracker):
    """In the project WANDB_PROJECT_NAME, else `dgg_ray`; the study is the group."""

    def __init__(self, study: Study, out: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - optional

        self.wandb, self.study, self.folder = wandb, study.name, out / FOLDER
        self.project = os.environ.get("WANDB_PROJECT_NAME") or "dgg_ray"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.runs: dict[str, Any] = {}

    def start_run(self, run: TrackedRun, state: dict[str, Any]) -> None:
        self.runs[run.id] = self.wandb.init(
            project=self.project,
            group=self.study,
            id=run.id,
            name=run.name,
            config=run.parameters,
            dir=str(self.folder),
            resume="allow",
            reinit="create_new",  # several runs of one process are open at the same time
        )

    def log(self, run: TrackedRun, values: Mapping[str, float]) -> None:
        self.runs[run.id].log(dict(values), step=run.step)

    def end_run(self, run: TrackedRun, failed: bool) -> None:
        self.runs.pop(run.id).finish(exit_code=int(failed))

    def close(self) -> None:
        for run in self.runs.values():
            run.finish()


TRACKERS: dict[str, Callable[[Study, Path], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}


# -- the study -------------------------------------------------------------------------------------


class TrackerReporter:
    """Reports what the store holds of a study to its trackers; one that fails is dropped with a warning."""

    def __init__(
        self,
        study: Study,
        store: StageStore,
        out: Path,
        trackers: Mapping[str, Tracker],
        optional: OptionalOutputs | None = None,
    ) -> None:
        self.study, self.store, self.file = study, store, out / FOLDER / REPORTED
        self.trackers, self.optional = dict(trackers), optional or OptionalOutputs()
        self.records: dict[str, dict[str, Any]] = read_json(self.file) or {}  # by tracked run, as kept
        self.open: dict[str, TrackedRun] = {}
        self.searches: list[tuple[SearchMethod, set[int]]] = []  # with the numbers of the queries taken up
        self.next_read = 0.0

    @property
    def is_active(self) -> bool:
        """Return whether any tracker is left; an error while the store is read ends all reports."""
        return bool(self.trackers) and EVERY_TRACKER not in self.optional.failures

    def follow(self, search: SearchMethod) -> None:
        """Track every setting that the search proposes on all tasks and blocks."""
        if self.is_active:
            self.searches.append((search, set()))

    def begin_again(self) -> None:
        """Follow no search any longer; the tracked runs go on with those that are followed from now on."""
        self.searches.clear()

    def follow_comparison(self, settings: Mapping[str, StudyRuns]) -> None:
        """Track the settings of the final comparison."""
        if not self.is_active:
            return
        with self.optional.attempt(EVERY_TRACKER, STOPPED):
            view = view_if_remote(self.store)
            for label, runs in settings.items():
                parameters = {"strategy": plugins.plugin_name(runs.study.strategy), "comparison": label}
                items = items_by_stage(runs, SPLITS, runs.study.protocol.evaluate)
                self.start_run(TrackedRun(f"final-{runs.id}", label, parameters, runs, "test", items), view)

    def report_news(self, at_end: bool = False) -> None:
        """Report what was finished since the last call, if that is long enough ago for what it cost.

        at_end: report in any case.
        """
        start = time.monotonic()
        if not self.is_active or (start < self.next_read and not at_end):
            return
        with self.optional.attempt(EVERY_TRACKER, STOPPED):
            view = view_if_remote(self.store)
            self._take_up_queries(view)
            for run in list(self.open.values()):
                self._report_run(run, view)
        now = time.monotonic()
        self.next_read = now + (now - start) / READ_SHARE

    def _take_up_queries(self, view: StageStore) -> None:
        for search, taken_up in self.searches:
            for number, query in enumerate(list(search.proposed)):
                whole = query.block is None and query.depth == len(self.study.task_names)
                if number not in taken_up and whole:
                    runs = self.study.at(query.setting).runs
                    self.start_run(
                        TrackedRun(
                            runs.id,
                            runs.id,
                            dict(query.setting),
                            runs,
                            runs.study.protocol.selection_split,
                            items_by_stage(runs),
                            partial(is_answered, search, number),
                        ),
                        view,
                    )
                taken_up.add(number)

    def start_run(self, run: TrackedRun, view: StageStore) -> None:
        """Start a tracked run, or continue it, and report what the store holds of it already."""
        record = self.records.setdefault(run.id, {"reported": [], "ended": False, "trackers": {}})
        if run.id in self.open:
            self.open[run.id].is_over = run.is_over  # of the search that is followed now
        if record["ended"] or run.id in self.open:
            return
        run.reported = [StageOfRun(*stage) for stage in record["reported"]]
        self.open[run.id] = run
        for name in list(self.trackers):
            self._call(name, "start_run", run, record["trackers"].setdefault(name, {}))
        self._report_run(run, view)

    def _report_run(self, run: TrackedRun, view: StageStore) -> None:
        news = run.news(view)
        for stage in news:
            run.reported.append(stage)
            self._call_all("log", run, run.point(view))
        state = run.state(view)
        if state == "ended" and run.reported:
            self._call_all("log", run, run.metrics(view))
        if state != "open":
            self._call_all("end_run", run, state == "failed")
            del self.open[run.id]
        if news or state != "open":
            self.records[run.id] |= {"reported": run.reported, "ended": state == "ended"}
            write_json(self.file, self.records)

    def close(self) -> None:
        """Let the trackers write out what they buffer."""
        self._call_all("close")

    def _call_all(self, method: str, *args: Any) -> None:
        for name in list(self.trackers):
            self._call(name, method, *args)

    def _call(self, name: str, method: str, *args: Any) -> None:
        """Call a tracker's method; drop the tracker if it raises."""
        with self.optional.attempt(name, STOPPED):
            getattr(self.trackers[name], method)(*args)
            return
        del self.trackers[name]


def items_by_stage(
    runs: StudyRuns, splits: tuple[str, ...] = (), scope: str = "seen"
) -> dict[StageOfRun, WorkItem]:
    """All work items of a setting's runs."""
    return {
        StageOfRun.of(run, item.stage): item for run in runs for item in runs.work_items(run, splits, scope)
    }


def is_answered(search: SearchMethod, number: int) -> bool:
    """Return whether the search has the evidence for its query of that number."""
    return number in search.answers


@contextmanager
def tracker_reporter(
    study: Study, store: StageStore, out: Path, optional: OptionalOutputs | None = None
) -> Iterator[TrackerReporter]:
    """Reports to the trackers that the study names, for the length of the block.

    optional: collects the trackers' errors, none of which ends the study.
    """
    trackers: dict[str, Tracker] = {}
    optional = optional or OptionalOutputs()
    for name in study.output.trackers:
        with optional.attempt(name, STOPPED):
            trackers[name] = TRACKERS[name](study, out)
    reporter = TrackerReporter(study, store, out, trackers, optional)
    try:
        yield reporter
    except BaseException:  # there is no time to read the store: the next run of the study reports the rest
        closing = threading.Thread(target=reporter.close, daemon=True)
        closing.start()
        closing.join(END_S)
        raise
    reporter.report_news(at_end=True)
    reporter.close()
