"""The bytes of a stage, and a store that never grows beyond `budget.disk_gb`."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dgg_ray import cli, load_study
from dgg_ray.config.sections import Budget, Protocol, Workers
from dgg_ray.core.errors import OverBudgetError, StudyError
from dgg_ray.core.interfaces import Adapter
from dgg_ray.core.stage import WorkItem
from dgg_ray.core.strategy import Strategy
from dgg_ray.cost import budget
from dgg_ray.cost.budget import BudgetTracker, DiskLimit, HoursLimit
from dgg_ray.cost.disk import CHECKPOINT, LOSS, METADATA, ROW, TOKEN, DiskModel
from dgg_ray.execution.work_queue import ItemResult, WorkQueue
from dgg_ray.storage.backend import folder_size
from dgg_ray.storage.stage_store import StageStore, open_store
from dgg_ray.strategies.l2sp import L2SP
from dgg_ray.training import checkpoints

MB = 1_000_000


def study_of(world, **more):
    data = SimpleNamespace(tasks={name: world.data(name) for name in world.tasks}, fingerprint="model")
    fields = {"name": "toy", "workers": Workers(gpus=1), "data": data, "protocol": Protocol()}
    return SimpleNamespace(**fields | more)


def model_of(world):
    return DiskModel(study_of(world), world.store)


def publish(world, stage, size, study="another"):
    record = {"earlier": [], "study": study, "workers": "", "cost": {"seconds": 1.0, "begin_seconds": 0.1}}
    world.store.publish(stage, record, lambda folder: (folder / "adapter").write_bytes(b"x" * size))


def at_rank(stage, rank):
    return replace(stage, adapter=replace(stage.adapter, rank=rank))


@pytest.fixture()
def measured(world):
    """Adapters of rank 8 take a megabyte."""
    publish(world, world.stages_of("ones", seed=99)[0], MB)
    return world


def test_a_lora_adapter_grows_with_its_rank_and_no_faster(measured):
    model, (stage,) = model_of(measured), measured.stages_of("fours")
    assert [model.adapter_bytes(at_rank(stage, rank)) for rank in (4, 8, 16)] == [MB, MB, 2 * MB]
    publish(measured, at_rank(measured.stages_of("ones", seed=98)[0], 4), MB // 2 + 1000)
    model.read()
    assert [model.adapter_bytes(at_rank(stage, rank)) for rank in (2, 4, 6)] == [501_000, 501_000, 751_500]


def test_adapters_on_other_layers_or_of_another_model_bound_nothing(measured):
    model, (stage,) = model_of(measured), measured.stages_of("fours")
    others = (
        replace(stage, adapter=Adapter(targets=("q_proj",))),
        replace(stage, training=replace(stage.training, projector_learning_rate=1e-5)),
        replace(stage, model="another"),
    )
    assert [model.adapter_bytes(other) for other in others] == [None] * 3
    assert model.concurrent_bytes([WorkItem(others[0])]) is None


def test_the_bytes_of_a_stage_are_the_sum_of_its_parts(measured):
    model, (stage,) = model_of(measured), measured.stages_of("fours")
    item = WorkItem(stage, (measured.evaluation("fours"),))  # three examples, a batch of eight, 16 tokens
    checkpoint = CHECKPOINT * MB + LOSS * 3 / 8 + METADATA
    answers = 3 * (ROW + 16 * TOKEN) + METADATA
    assert model.added_bytes(item) == MB + METADATA + answers
    assert model.temporary_bytes(item) == 2 * checkpoint
    assert model.concurrent_bytes([item]) == model.added_bytes(item) + 2 * checkpoint
    other = WorkItem(measured.stages_of("nines")[0])
    temporary = model.temporary_bytes(other)
    assert (
        model.concurrent_bytes([item, other])
        == model.added_bytes(item) + 2 * checkpoint + MB + METADATA + temporary
    )
    assert model.sequential_bytes([item, other]) == model.added_bytes(item) + MB + METADATA + 2 * checkpoint
    publish(measured, stage, MB)
    model.read()
    assert model.concurrent_bytes([item]) == answers  # the stage is stored: the evaluations are left


def test_a_strategy_that_hands_on_a_state_takes_more_bytes(measured):
    class WithState(Strategy):
        def state(self):
            return {"anchor": None}

    model, (stage,) = model_of(measured), measured.stages_of("fours")
    assert model.added_bytes(WorkItem(replace(stage, strategy=WithState()))) == 3 * MB + METADATA


# -- the rule --------------------------------------------------------------------------------------


def disk_limit(world, megabytes, comparison=()):
    return DiskLimit(study_of(world, budget=Budget(disk_gb=megabytes / 1000)), world.store, comparison)


def item_of(world, name):
    return WorkItem(world.stages_of(name)[0])


def test_an_item_that_does_not_fit_on_the_disk_is_rejected_with_what_would_help(measured):
    item = item_of(measured, "fours")  # 9 MB, and a little more with its metadata
    assert disk_limit(measured, 10.5).decide(item) == "admit"
    tight = disk_limit(measured, 9.9)
    assert tight.decide(item) == "reject"
    message = str(tight.refusal(item))
    assert "9.2 GB" not in message
    assert "it may take up to 0.0092 GB on disk" in message
    assert message.endswith("Raise budget.disk_gb or run `dgg-ray gc OUT`")


def test_two_stages_that_do_not_fit_together_wait_for_each_other(measured):
    queue = WorkQueue(measured.store, budget=BudgetTracker([disk_limit(measured, 12)]))
    fours, nines = (item_of(measured, name) for name in ("fours", "nines"))
    for item in (fours, nines):
        assert queue.request(item) == "queued"
    assert queue.dequeue("a") == fours
    assert queue.dequeue("b") is None
    publish(measured, fours.stage, MB)
    queue.finish("a", ItemResult(fours.key, trained=True))
    assert queue.dequeue("b") == nines  # 2 MB are stored, and 9.2 are needed


def test_checkpoints_of_running_items_reject_no_waiting_item(measured):
    tight = disk_limit(measured, 12)
    fours, nines = (item_of(measured, name) for name in ("fours", "nines"))
    measured.store.backend.write(checkpoints.object_name(fours.stage), b"x" * 4 * MB)
    tight.set_usage(tight.measure_usage())
    assert tight.decide(nines) == "reject"
    assert tight.decide(nines, [fours]) == "wait"


def test_stages_of_other_studies_and_leftovers_count_as_spent(measured):
    item = item_of(measured, "fours")
    tight = disk_limit(measured, 12)
    assert tight.decide(item) == "admit"
    publish(measured, measured.stages_of("nines", seed=5)[0], 3 * MB)
    assert tight.decide(item) == "admit"  # a minute may pass before others' work is measured
    tight.record_loss(1.0)
    assert tight.decide(item) == "reject"
    assert tight.spent == folder_size(measured.store.backend.root)


def test_an_item_of_unknown_size_is_rejected(world):
    item = item_of(world, "fours")
    unmeasured = disk_limit(world, 1e6)
    assert unmeasured.decide(item) == "reject"
    assert "its cost is unknown" in str(unmeasured.refusal(item))
    assert unmeasured.decide(replace(item, profile="setup")) == "admit"


def test_disk_is_reserved_for_the_comparison(measured):
    item, final = (item_of(measured, name) for name in ("fours", "nines"))
    final = replace(final, evaluations=(measured.evaluation("nines"),))
    assert disk_limit(measured, 19.9, [final]).decide(item) == "admit"
    tight = disk_limit(measured, 19, [final])
    assert tight.decide(item) == "reject"  # 1 + 9.2 + 9.3
    assert tight.decide(final) == "admit"


def test_the_limit_that_rejects_is_named(measured):
    item = item_of(measured, "fours")

    def both(**limits):
        study = study_of(measured, budget=Budget(**limits), chooses=False)
        return budget.make_tracker(study, measured.store, lambda study: [])

    roomy = both(worker_hours=1, disk_gb=1)
    assert [type(limit) for limit in roomy.limits] == [HoursLimit, DiskLimit]
    assert roomy.decide(item) == "admit"
    assert "Raise budget.disk_gb or" in str(both(worker_hours=1, disk_gb=0.005).refusal(item))
    timings = {
        "setup": [{"n": 1, "seconds": 1.0}],
        "answer": [],
        "train": [{"n": 1, "seconds": 3600.0}],
    }
    meaning = {"meaning": item.stage.meaning, "workers": "1xgpu1-auto", "study": "toy", "bytes": MB}
    measured.store.record_profile(
        replace(item, profile="1xgpu1-auto"), meaning | {"cost": {"seconds": 7200.0}} | timings
    )
    poor = both(worker_hours=2.5, disk_gb=1)
    assert poor.decide(item) == "reject"
    assert str(poor.refusal(item)).endswith("Raise budget.worker_hours")
    with pytest.raises(StudyError) as both_faults:
        both(worker_hours=2.5, disk_gb=0.005).check([item])
    assert [fault.path for fault in both_faults.value.faults] == ["budget.worker_hours", "budget.disk_gb"]


def test_without_limits_the_running_items_are_not_computed():
    def running():
        pytest.fail("computed")
        yield

    assert BudgetTracker().decide(WorkItem(None), running()) == "admit"


# -- the files of a stage --------------------------------------------------------------------------


@pytest.mark.whole
def test_a_published_stage_keeps_its_adapter_and_no_checkpoint(tmp_path):
    """With L2SP, whose memory holds an anchor, a checkpoint has the size that disk.py counts."""
    from dgg_ray.core.interfaces import Training
    from dgg_ray.execution.worker_groups import build_stage_runner

    (tmp_path / "study.yaml").write_text(STUDY)
    study = load_study(tmp_path / "study.yaml")
    study = replace(study, search=None, training=Training(batch_size=4), adapter=Adapter(rank=32))
    study = replace(study, strategy=L2SP(), workers=Workers(checkpoint_steps=1))
    store = open_store(tmp_path / "stages")
    checkpoint_sizes = []
    write = checkpoints.write

    def measured_write(store, stage, checkpoint):
        write(store, stage, checkpoint)
        checkpoint_sizes.append(sum(store.backend.sizes("checkpoints/").values()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write", measured_write)
        runner = build_stage_runner(study, store)
        (run, *_) = study.runs
        for stage in run.stages:
            runner.run(WorkItem(stage))
    stage = run.stages[1]
    files = {name.split("/", 3)[3] for name in store.backend.sizes(f"files/{stage.key}/")}
    names = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md"}
    assert files == names
    size = store.record(stage)["bytes"]
    model = DiskModel(study, store)
    assert (
        3 * size
        < max(checkpoint_sizes)
        <= model.temporary_bytes(replace(WorkItem(stage), stage=at_seed(stage, 7))) / 2
    )
    assert not list((store.backend.root / "checkpoints").iterdir())


def at_seed(stage, seed):
    return replace(stage, seed=seed, parent=replace(stage.parent, seed=seed))


# -- a study that runs out of disk -----------------------------------------------------------------

STUDY = """\
name: small
model: embedded
tasks:
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: charts, reader: embedded, train: 12, validation: 10, test: 10}
strategy: dgg
training: {batch_size: 4}
search: {method: grid, space: {strategy.alpha: {per_task: [0, 0.3, 0.6, 1]}}}
protocol: {max_new_tokens: 2, baselines: [finetune]}
"""
SIMULATED = STUDY + "workers: {engine: simulated}\nseeds: [0, 1, 2]\n"


@pytest.fixture()
def largest_size(monkeypatch):
    """Give simulated stages adapters of a megabyte and two mid-stage checkpoints, and profiles real sizes.

    Returns a list with the largest size that the store had so far.
    """
    largest = [0]
    publish, measure = StageStore.publish, StageStore.record_profile

    def publish_with_checkpoints(self, stage, record, fill):
        checkpoint_folder = self.backend.root / "checkpoints"
        checkpoint_folder.mkdir(parents=True, exist_ok=True)
        count = 2 if stage.trained_tasks else 0
        files = [checkpoint_folder / f"{stage.key}.{i}" for i in range(count)]
        for file in files:
            file.write_bytes(b"x" * CHECKPOINT * MB)
        largest[0] = max(largest[0], folder_size(self.backend.root))
        for file in files[1:]:
            file.unlink()
        publish(
            self, stage, record, lambda f: (f / "adapter").write_bytes(b"x" * MB * bool(stage.trained_tasks))
        )
        largest[0] = max(largest[0], folder_size(self.backend.root))
        for file in files[:1]:
            file.unlink()

    monkeypatch.setattr(StageStore, "publish", publish_with_checkpoints)
    monkeypatch.setattr(StageStore, "record_profile", lambda s, item, r: measure(s, item, r | {"bytes": MB}))
    return largest


@pytest.mark.whole
def test_a_study_ends_within_its_disk_limit_and_goes_on_with_a_larger_one(tmp_path, capsys, largest_size):
    file, out = tmp_path / "study.yaml", tmp_path / "out"

    def run(gigabytes):
        file.write_text(SIMULATED + f"budget: {{disk_gb: {gigabytes}}}\n")
        code = cli.main(["run", str(file), "--out", str(out), "--local", "--quiet"])
        return code, "".join(capsys.readouterr())

    def stages():
        return [
            r for r in open_store(out / "stages") if r["trained_task"] != "" and r["cost"].get("examples")
        ]

    code, output = run(0.004)
    assert code == 2
    # 2 stages and 3 · 3 of the comparison, and twice 8 MB of checkpoints: 27 MB, and metadata
    assert "budget.disk_gb: must be at least 0.02" in output
    assert not stages()

    code, output = run(0.03)
    assert code == 0
    assert "would be exceeded" in output
    assert "GB on disk" in output
    few = len(stages())
    assert 9 <= few < 15
    assert largest_size[0] <= 30 * MB
    assert not list((out / "stages" / "failed").glob("*"))

    code, output = run(0.05)
    assert code == 0
    assert "would be exceeded" not in output
    assert len(stages()) > few
    assert few * MB < largest_size[0] <= 50 * MB

    cli.main(["plan", str(file), "--out", str(out), "--json"])
    usage = json.loads(capsys.readouterr().out)["disk_usage"]
    assert usage == {"bytes": folder_size(out / "stages"), "limit": 50 * MB}
    cli.main(["status", str(out)])
    assert "of 0.05 GB" in capsys.readouterr().out


def test_a_refusal_by_the_disk_limit_is_an_over_budget_error(measured):
    assert isinstance(disk_limit(measured, 5).refusal(item_of(measured, "fours")), OverBudgetError)


def test_three_worker_groups_never_exceed_the_disk_limit(measured):
    limit, largest, rng = 40 * MB, 0, np.random.default_rng(0)
    store = measured.store
    tracker = BudgetTracker([disk_limit(measured, limit / MB)])
    queue = WorkQueue(store, max_retries=9, budget=tracker)
    work_items = [WorkItem(measured.stages_of("fours", seed=seed)[0]) for seed in range(40)]
    assert {queue.request(item) for item in work_items} == {"queued"}
    running: dict[str, WorkItem] = {}
    while True:
        for group in {"a", "b", "c"} - running.keys():
            if item := queue.dequeue(group):
                running[group] = item
                for i in (0, 1):
                    file = store.backend.root / "checkpoints" / f"{item.stage.key}.{i}"
                    file.parent.mkdir(exist_ok=True)
                    file.write_bytes(b"x" * CHECKPOINT * MB)
        largest = max(largest, store.size())
        if not running:
            break
        group = str(rng.choice(sorted(running)))
        item = running.pop(group)
        if rng.random() < 0.2:  # lost, and its checkpoints stay until the stage is trained after all
            queue.group_lost(group)
            continue
        for file in store.backend.root.glob(f"checkpoints/{item.stage.key}.*"):
            file.unlink()
        publish(measured, item.stage, MB, study="toy")
        queue.finish(group, ItemResult(item.key, trained=True))
    assert limit - 11 * MB < largest <= limit
    assert queue.counts["trained"] >= 28  # a megabyte each, and 8 for the last one's checkpoints
    assert {error["error"] for error in queue.refused.values()} == {OverBudgetError.__name__}
