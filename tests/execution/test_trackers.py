"""Each setting is one tracked run with a point for each stage, however often the study is run."""

import struct
import sys
import threading
import time
import uuid
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dgg_ray import load_study
from dgg_ray.config.sections import Output, Protocol, Search, SearchParameter
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.config.study import Study
from dgg_ray.core.errors import StudyError
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.cost.budget import BudgetTracker
from dgg_ray.execution import driver
from dgg_ray.execution import trackers as trackers_module
from dgg_ray.execution.executor import make_executor
from dgg_ray.execution.progress import Display
from dgg_ray.execution.trackers import FOLDER, TensorBoardTracker, TrackerReporter, tracker_reporter
from dgg_ray.search import comparison
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.fsspec_backend import FsspecBackend
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.storage.stage_store import open_store
from dgg_ray.storage.store_view import view_if_remote
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study

ALPHA = "strategy.alpha"


def study_of(*trackers: str, **changes) -> Study:
    settings = {
        "search": Search({ALPHA: SearchParameter(values=(0.0, 1.0))}, method="grid"),
        "protocol": Protocol(evaluate="seen", baselines=("finetune",)),
        "simulation": ResponseModel(noise=0.0, evaluation_noise=False, spread=0.0),
        "output": Output(trackers=trackers),  # pyright: ignore
    }
    return synthetic_study(3, DGG(alpha=0.5, buffer=10), **(settings | changes))


def run(study, store, out, stages=None, optional=None) -> str:
    """Do what `driver.run` does, without plan and report.

    stages: run so many stages of the first setting, and nothing else; its id is returned.
    """
    with (
        Display("", quiet=True) as display,
        make_executor(study, store, out, display, BudgetTracker(), local=True) as executor,
        tracker_reporter(study, store, out, optional) as reporter,
    ):
        display.on_item_finished = reporter.report_news
        search = comparison.make_search(study)
        reporter.follow(search)
        if stages is not None:
            _, query = search.ask() or pytest.fail("nothing was proposed")
            at = study.at(query.setting)
            executor.execute([at.runs.work_items(at.runs[0])[:stages]])
            return at.id
        driver.run_search(EvidenceReader(study, store), executor, search)
        final = comparison.Comparison(study, search).settings
        reporter.follow_comparison(final)
        executor.execute(comparison.final_chains(final))
    return ""


def score(study, store, alpha, t, split="validation"):
    at = study.at({ALPHA: alpha})
    return EvidenceReader(at, store).score_matrix(at.runs, at.runs[0], split).R[t]


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of all event files in a folder: tag → (step, value)."""
    from tensorboardX.proto.event_pb2 import Event

    points: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events*")):
        content = file.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event, content = Event.FromString(content[12 : 12 + size]), content[16 + size :]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {tag: sorted(values) for tag, values in points.items()}


def test_tensorboard_has_a_point_for_every_stage_and_the_metrics_at_the_end(tmp_path):
    study, store = study_of("tensorboard"), MemoryStore()
    run(study, store, tmp_path)
    folder = tmp_path / FOLDER / "tensorboard"
    points = read_events(folder / study.at({ALPHA: 1.0}).id)
    assert [step for step, _ in points["score"]] == [1, 2, 3]
    means = [np.nanmean(score(study, store, 1.0, t)) for t in range(3)]
    assert [value for _, value in points["score"]] == pytest.approx(means)
    of_task1 = [score(study, store, 1.0, t)[1] for t in (1, 2)]
    assert points["score/task1"] == [(2, pytest.approx(of_task1[0])), (3, pytest.approx(of_task1[1]))]
    assert points["faa"] == [(3, pytest.approx(means[2]))]  # tasks of one size
    assert len(list(folder.iterdir())) == 4  # two settings, and the winner and finetune compared
    assert sum(f.name.startswith("final-") for f in folder.iterdir()) == 2


def test_tensorboard_has_the_values_of_a_setting_as_hparams(tmp_path):
    study = study_of("tensorboard")
    run(study, MemoryStore(), tmp_path)
    folder = tmp_path / FOLDER / "tensorboard" / study.at({ALPHA: 1.0}).id
    content = b"".join(file.read_bytes() for file in folder.glob("events*"))
    assert b"_hparams_/experiment" in content
    assert ALPHA.encode() in content


@pytest.mark.whole
def test_a_study_that_was_stopped_continues_the_same_runs_and_repeats_no_point(tmp_path):
    study, store = study_of("tensorboard"), MemoryStore()
    folder = tmp_path / FOLDER / "tensorboard" / run(study, store, tmp_path, stages=2)
    assert [step for step, _ in read_events(folder)["score"]] == [1, 2]
    time.sleep(1.1)  # event files are named by the second
    run(study, store, tmp_path)
    points = read_events(folder)
    assert [step for step, _ in points["score"]] == [1, 2, 3]
    run(study, store, tmp_path)
    assert read_events(folder) == points


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore")  # those of MLflow and its database
def test_mlflow_has_a_run_for_every_setting_with_its_values_and_no_more_when_run_again(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study, store = study_of("mlflow"), MemoryStore()
    run(study, store, tmp_path, stages=1)
    run(study, store, tmp_path)
    run(study, store, tmp_path)

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / FOLDER / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(study.name)
    assert experiment is not None
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    ids = {alpha: study.at({ALPHA: alpha}).id for alpha in (0.0, 1.0)}
    assert sorted(runs) == sorted([*ids.values(), "dgg", "finetune"])
    for alpha, id in ids.items():
        assert runs[id].data.params == {ALPHA: str(alpha)}
        assert runs[id].info.status == "FINISHED"
        history = client.get_metric_history(runs[id].info.run_id, "score")
        means = [np.nanmean(score(study, store, alpha, t)) for t in range(3)]
        assert [(m.step, m.value) for m in history] == [(t + 1, pytest.approx(means[t])) for t in range(3)]
        assert runs[id].data.metrics["faa"] == pytest.approx(means[2])
    assert runs["finetune"].data.params["strategy"] == "finetune"


class FakeWandb:
    """Stands in for the package `wandb`; keeps what it is called with."""

    def __init__(self):
        self.inits, self.points, self.ended = [], {}, {}

    def init(self, **options):
        self.inits.append(options)
        id = options["id"]

        def finish(exit_code=0):
            self.ended[id] = exit_code

        def log(values, step):
            self.points.setdefault(id, []).append((step, values))

        return SimpleNamespace(log=log, finish=finish)


def test_wandb_has_a_run_for_every_setting_in_the_studys_group_and_continues_it(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT_NAME", raising=False)
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    study, store = study_of("wandb"), MemoryStore()
    first = run(study, store, tmp_path, stages=2)
    run(study, store, tmp_path)

    ids = {study.at({ALPHA: alpha}).id for alpha in (0.0, 1.0)}
    settings = [options for options in fake.inits if options["id"] in ids]
    assert sorted(options["id"] for options in settings) == sorted([first, *ids])  # the first one, twice
    assert {options["project"] for options in settings} == {"dgg_ray"}
    assert {options["group"] for options in settings} == {study.name}
    assert {options["resume"] for options in settings} == {"allow"}
    assert {options["id"]: options["config"] for options in settings} == {
        study.at({ALPHA: alpha}).id: {ALPHA: alpha} for alpha in (0.0, 1.0)
    }
    means = [np.nanmean(score(study, store, 1.0, t)) for t in range(3)]
    points = fake.points[study.at({ALPHA: 1.0}).id]
    logged = [(step, values["score"]) for step, values in points if "score" in values]
    assert logged == [(t + 1, pytest.approx(means[t])) for t in range(3)]
    assert points[-1][1]["faa"] == pytest.approx(means[2])
    assert set(fake.ended.values()) == {0}


@pytest.mark.parametrize("method", ["__init__", "start_run", "log", "end_run"])
def test_a_tracker_that_fails_is_dropped_with_a_warning_and_the_study_goes_on(tmp_path, monkeypatch, method):
    def fail(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TensorBoardTracker, method, fail)
    study, store, optional = study_of("tensorboard"), MemoryStore(), OptionalOutputs()
    run(study, store, tmp_path, optional=optional)
    assert optional.messages == [
        "tensorboard gets no further updates of this study: ConnectionError: no route to host"
    ]
    assert all(store.record(stage) for stage in study.at({ALPHA: 1.0}).runs[0].stages)


def test_no_tracker_is_updated_after_an_error_while_the_store_was_read(tmp_path, monkeypatch):
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise OSError("no space left")

    monkeypatch.setattr(TrackerReporter, "start_run", fail)
    study, store, optional = study_of("tensorboard"), MemoryStore(), OptionalOutputs()
    run(study, store, tmp_path, optional=optional)
    assert optional.messages == [
        "every tracker gets no further updates of this study: OSError: no space left"
    ]
    assert calls == [1]


def test_a_study_that_is_stopped_does_not_wait_for_its_trackers(tmp_path, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(TensorBoardTracker, "close", lambda *_: released.wait(60))
    monkeypatch.setattr(trackers_module, "END_S", 0.1)
    monkeypatch.setattr(TrackerReporter, "report_news", lambda *_, **__: pytest.fail("read the store"))
    start = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        tracker_reporter(study_of("tensorboard"), MemoryStore(), tmp_path),
    ):
        raise KeyboardInterrupt
    assert time.monotonic() - start < 30
    released.set()


def test_a_remote_store_is_listed_and_not_asked_for_each_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    study = study_of("tensorboard")
    store = open_store(f"memory://{uuid.uuid4().hex}/stages")
    run(study, store, tmp_path / "one")
    listed, read = [], []
    sizes, read_object = FsspecBackend.sizes, FsspecBackend.read
    monkeypatch.setattr(
        FsspecBackend, "sizes", lambda self, prefix: listed.append(prefix) or sizes(self, prefix)
    )
    monkeypatch.setattr(
        FsspecBackend, "read", lambda self, *name: read.append(name) or read_object(self, *name)
    )

    again, search = open_store(store.url), comparison.make_search(study)
    assert EvidenceReader(study, view_if_remote(again)).fast_forward(search) is None
    assert len(search.answers) == 2
    assert listed == ["stages/"]
    assert {name for (name,) in read} == {"store.json", *sizes(again.backend, "stages/")}
    assert len(read) <= len(set(read)) + 1

    listed.clear()
    with tracker_reporter(study, again, tmp_path / "two") as reporter:
        reporter.follow(search)
        reporter.report_news()
        assert sorted(listed) == ["stages/"]
        reporter.report_news()  # too early to read again
        assert sorted(listed) == ["stages/"]
    assert len(read_events(tmp_path / "two" / FOLDER / "tensorboard" / study.at({ALPHA: 1.0}).id)) > 3


def test_a_tracker_that_is_not_installed_is_a_fault_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "dgg_ray.config.validation.find_spec", lambda name: None if name == "wandb" else object()
    )
    file = tmp_path / "study.yaml"
    file.write_text("""\
name: tracked
model: embedded
tasks: [{name: digits, reader: embedded}, {name: words, reader: embedded}]
strategy: dgg
output:
  trackers:
    - tensorboard
    - wandb
    - mlflow
""")
    with pytest.raises(StudyError) as raised:
        load_study(file)
    (fault,) = raised.value.faults
    assert (fault.line, fault.path) == (8, "output.trackers[1]")
    assert str(fault).endswith("its package wandb is not installed: pip install wandb, got 'wandb'")


def test_without_trackers_nothing_is_written(tmp_path):
    with warnings.catch_warnings():
        run(study_of(), MemoryStore(), tmp_path)
    assert not (tmp_path / FOLDER).exists()
