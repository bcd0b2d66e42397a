"""Every setting is one tracked run, with a point for each stage, however often the study is run."""

import struct
import threading
import time
import uuid
import warnings
from pathlib import Path

import numpy as np
import pytest

from dgg_ray import load_study
from dgg_ray.config.sections import Output, Protocol, Search, SearchParameter
from dgg_ray.config.simulation import Law
from dgg_ray.config.study import Study
from dgg_ray.core.errors import StudyError
from dgg_ray.core.fence import Fence
from dgg_ray.cost.budget import Purse
from dgg_ray.execution import driver
from dgg_ray.execution.executor import Crew
from dgg_ray.execution.progress import Display
from dgg_ray.execution.trackers import FOLDER, Tracking, tracking
from dgg_ray.search import comparison, evidence
from dgg_ray.storage.remote_store import RemoteStore, Url
from dgg_ray.storage.store_view import at_once
from dgg_ray.strategies.dgg import DGG
from dgg_ray.training.simulated import MemoryStore, imagined

ALPHA = "strategy.alpha"


def study_of(*trackers: str, **changes) -> Study:
    settings = {
        "search": Search({ALPHA: SearchParameter(values=(0.0, 1.0))}, method="grid"),
        "protocol": Protocol(evaluate="seen", baselines=("finetune",)),
        "simulation": Law(noise=0.0, evaluation_noise=False, spread=0.0),
        "output": Output(trackers=trackers),  # pyright: ignore
    }
    return imagined(3, DGG(alpha=0.5, buffer=10), **(settings | changes))


def run(study, store, out, stages=None, fence=None) -> str:
    """What `tune.run` does, without plan and report. stages: of the first setting alone; its id is given."""
    with (
        Display("", quiet=True) as display,
        Crew(study, store, out, display, Purse(), local=True) as crew,
        tracking(study, store, out, crew.start, fence) as told,
    ):
        display.told = told.look
        search = comparison.make_search(study)
        told.follow(search)
        if stages is not None:
            _, query = search.ask() or pytest.fail("nothing was proposed")
            at = study.at(query.setting)
            crew.obtain([evidence.work_items(at, at.runs()[0])[:stages]])
            return at.id
        driver.pursue(study, store, crew, search)
        final = comparison.compared_settings(study, search, {})
        told.compare(final)
        crew.obtain(evidence.final_works(final))
    return ""


def score(study, store, alpha, t, split="validation"):
    at = study.at({ALPHA: alpha})
    return evidence.matrix(at, store, at.runs()[0], split).R[t]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of all event files in a folder: tag → (step, value)."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events*")):
        content = file.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event, content = Event.FromString(content[12 : 12 + size]), content[16 + size :]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {tag: sorted(points) for tag, points in found.items()}


def test_tensorboard_has_a_point_for_every_stage_and_the_metrics_at_the_end(tmp_path):
    study, store = study_of("tensorboard"), MemoryStore()
    run(study, store, tmp_path)
    folder = tmp_path / FOLDER / "tensorboard"
    found = events(folder / study.at({ALPHA: 1.0}).id)
    assert [step for step, _ in found["ray/tune/score"]] == [1, 2, 3]
    means = [np.nanmean(score(study, store, 1.0, t)) for t in range(3)]
    assert [value for _, value in found["ray/tune/score"]] == pytest.approx(means)
    of_task1 = [score(study, store, 1.0, t)[1] for t in (1, 2)]
    assert found["ray/tune/score/task1"] == [
        (2, pytest.approx(of_task1[0])),
        (3, pytest.approx(of_task1[1])),
    ]
    assert found["ray/tune/faa"] == [(3, pytest.approx(means[2]))]  # tasks of one size
    assert len(list(folder.iterdir())) == 4  # two settings, and the winner and finetune compared
    assert sum(f.name.startswith("final-") for f in folder.iterdir()) == 2


def test_a_study_that_was_stopped_goes_on_with_the_same_runs_and_repeats_no_point(tmp_path):
    study, store = study_of("tensorboard"), MemoryStore()
    folder = tmp_path / FOLDER / "tensorboard" / run(study, store, tmp_path, stages=2)
    assert [step for step, _ in events(folder)["ray/tune/score"]] == [1, 2]
    time.sleep(1.1)  # files of events are named by the second
    run(study, store, tmp_path)
    whole = events(folder)
    assert [step for step, _ in whole["ray/tune/score"]] == [1, 2, 3]
    run(study, store, tmp_path)
    assert events(folder) == whole


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
    found = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    ids = {alpha: study.at({ALPHA: alpha}).id for alpha in (0.0, 1.0)}
    assert sorted(found) == sorted([*ids.values(), "dgg", "finetune"])
    for alpha, id in ids.items():
        assert found[id].data.params == {ALPHA: str(alpha)}
        assert found[id].info.status == "FINISHED"
        history = client.get_metric_history(found[id].info.run_id, "score")
        means = [np.nanmean(score(study, store, alpha, t)) for t in range(3)]
        assert [(m.step, m.value) for m in history] == [(t + 1, pytest.approx(means[t])) for t in range(3)]
        assert found[id].data.metrics["faa"] == pytest.approx(means[2])
    assert found["finetune"].data.params["strategy"] == "finetune"


@pytest.mark.parametrize(
    "verb", ["__init__", "setup", "log_trial_start", "log_trial_result", "log_trial_end"]
)
def test_a_tracker_that_breaks_is_dropped_with_a_warning_and_the_study_goes_on(tmp_path, monkeypatch, verb):
    from ray.tune.logger import TBXLoggerCallback

    def gone(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TBXLoggerCallback, verb, gone)
    study, store, fence = study_of("tensorboard"), MemoryStore(), Fence()
    run(study, store, tmp_path, fence=fence)
    assert fence.lines == ["tensorboard is told no more of this study: ConnectionError: no route to host"]
    assert all(store.record(stage) for stage in study.at({ALPHA: 1.0}).runs()[0].stages)


def test_after_a_look_that_failed_no_tracker_is_told_again(tmp_path, monkeypatch):
    begun = []

    def full(*_, **__):
        begun.append(1)
        raise OSError("no space left")

    monkeypatch.setattr(Tracking, "begin", full)
    study, store, fence = study_of("tensorboard"), MemoryStore(), Fence()
    run(study, store, tmp_path, fence=fence)
    assert fence.lines == ["every tracker is told no more of this study: OSError: no space left"]
    assert begun == [1]


def test_a_run_that_is_stopped_does_not_wait_for_its_trackers(tmp_path, monkeypatch):
    from ray.tune.logger import TBXLoggerCallback

    from dgg_ray.execution import trackers

    ended = threading.Event()
    monkeypatch.setattr(TBXLoggerCallback, "on_experiment_end", lambda *_: ended.wait(60))
    monkeypatch.setattr(trackers, "END_S", 0.1)
    monkeypatch.setattr(trackers.Tracking, "look", lambda *_, **__: pytest.fail("looked"))
    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        tracking(study_of("tensorboard"), MemoryStore(), tmp_path, lambda: None),
    ):
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30
    ended.set()


def test_a_store_far_away_is_listed_and_not_asked_for_each_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    study = study_of("tensorboard")
    store = RemoteStore(f"memory://{uuid.uuid4().hex}/stages")
    run(study, store, tmp_path / "one")
    listed, read = [], []
    sizes, ask = Url.sizes, Url.read
    monkeypatch.setattr(Url, "sizes", lambda self, prefix: listed.append(prefix) or sizes(self, prefix))
    monkeypatch.setattr(Url, "read", lambda self, *name: read.append(name) or ask(self, *name))

    again, search = RemoteStore(store.address), comparison.make_search(study)
    assert evidence.replay(study, at_once(again), search) is None
    assert len(search.told) == 2
    assert listed == ["stages/"]
    assert {name for (name,) in read} == set(sizes(again.objects, "stages/"))
    assert len(read) <= len(set(read)) + 1

    listed.clear()
    with tracking(study, again, tmp_path / "two", lambda: None) as told:
        told.follow(search)
        told.look()
        assert sorted(listed) == ["stages/"]
        told.look()  # too early for another
        assert sorted(listed) == ["stages/"]
    assert len(events(tmp_path / "two" / FOLDER / "tensorboard" / study.at({ALPHA: 1.0}).id)) > 3


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
    with pytest.raises(StudyError) as found:
        load_study(file)
    (fault,) = found.value.faults
    assert (fault.line, fault.path) == (8, "output.trackers[1]")
    assert str(fault).endswith("its package wandb is not installed: pip install wandb, got 'wandb'")


def test_without_trackers_nothing_is_written(tmp_path):
    with warnings.catch_warnings():
        run(study_of(), MemoryStore(), tmp_path)
    assert not (tmp_path / FOLDER).exists()
