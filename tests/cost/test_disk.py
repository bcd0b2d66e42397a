"""A store never grows over `budget.disk_gb`; what a stage leaves on the disk, and what it does not."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dgg_ray import cli, load_study
from dgg_ray.config.sections import Budget, Protocol, Workers
from dgg_ray.core.errors import OverBudget, StudyError
from dgg_ray.core.interfaces import Adapter, Strategy
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost import budget
from dgg_ray.cost.budget import Disk, Hours, Purse
from dgg_ray.cost.disk import LOSS, PAPERS, ROW, SNAPSHOT, TOKEN, Sizes
from dgg_ray.execution.broker import Desk
from dgg_ray.storage.backend import weight
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.strategies.l2sp import L2SP
from dgg_ray.training import checkpoints

MB = 1_000_000


def study_of(world, **more):
    tasks = {name: world.data(name) for name in world.tasks}
    usual = {"name": "toy", "workers": Workers(gpus=1), "fingerprint": "model", "tasks": tasks}
    return SimpleNamespace(**usual | {"protocol": Protocol()} | more)


def published(world, stage, size, study="another"):
    record = {"earlier": [], "study": study, "workers": "", "cost": {"seconds": 1.0, "begin_seconds": 0.1}}
    world.store.publish(stage, record, lambda folder: (folder / "adapter").write_bytes(b"x" * size))


def at_rank(stage, rank):
    return replace(stage, adapter=replace(stage.adapter, rank=rank))


@pytest.fixture()
def measured(world):
    """Adapters of rank 8 have a megabyte."""
    published(world, world.path("ones", seed=99)[0], MB)
    return world


def test_a_lora_adapter_grows_with_its_rank_and_no_faster(measured):
    sizes, (stage,) = Sizes(study_of(measured), measured.store), measured.path("fours")
    assert [sizes.adapter(at_rank(stage, rank)) for rank in (4, 8, 16)] == [MB, MB, 2 * MB]
    published(measured, at_rank(measured.path("ones", seed=98)[0], 4), MB // 2 + 1000)
    sizes.read()
    assert [sizes.adapter(at_rank(stage, rank)) for rank in (2, 4, 6)] == [501_000, 501_000, 751_500]


def test_adapters_on_other_layers_or_of_another_model_say_nothing(measured):
    sizes, (stage,) = Sizes(study_of(measured), measured.store), measured.path("fours")
    others = (
        replace(stage, adapter=Adapter(targets=("q_proj",))),
        replace(stage, training=replace(stage.training, projector_learning_rate=1e-5)),
        replace(stage, model="another"),
    )
    assert [sizes.adapter(other) for other in others] == [None] * 3
    assert sizes.together([WorkItem(others[0])]) is None


def test_what_a_stage_takes_is_its_parts(measured):
    sizes, (stage,) = Sizes(study_of(measured), measured.store), measured.path("fours")
    item = WorkItem(stage, (measured.evaluation("fours"),))  # three examples, a batch of eight, 16 tokens
    snapshot = SNAPSHOT * MB + LOSS * 3 / 8 + PAPERS
    answers = 3 * (ROW + 16 * TOKEN) + PAPERS
    assert sizes.left(item) == MB + PAPERS + answers
    assert sizes.inside(item) == 2 * snapshot
    assert sizes.together([item]) == sizes.left(item) + 2 * snapshot
    other = WorkItem(measured.path("nines")[0])
    inside = sizes.inside(other)
    assert sizes.together([item, other]) == sizes.left(item) + 2 * snapshot + MB + PAPERS + inside
    assert sizes.in_turn([item, other]) == sizes.left(item) + MB + PAPERS + 2 * snapshot
    published(measured, stage, MB)
    sizes.read()
    assert sizes.together([item]) == answers  # the stage is there: the exams are left


def test_a_strategy_that_hands_on_a_state_takes_more(measured):
    class Keeps(Strategy):
        def state(self):
            return {"anchor": None}

    sizes, (stage,) = Sizes(study_of(measured), measured.store), measured.path("fours")
    assert sizes.left(WorkItem(replace(stage, strategy=Keeps()))) == 3 * MB + PAPERS


# -- the rule --------------------------------------------------------------------------------------


def purse(world, megabytes, final=()):
    return Disk(study_of(world, budget=Budget(disk_gb=megabytes / 1000)), world.store, final)


def test_what_does_not_fit_on_the_disk_is_refused_with_what_would_help(measured):
    (item,) = (WorkItem(stage) for stage in measured.path("fours"))  # 9 MB, with its papers a little more
    assert purse(measured, 10.5).verdict(item) == "go"
    tight = purse(measured, 9.9)
    assert tight.verdict(item) == "over"
    said = str(tight.refusal(item))
    assert "it may take 9.2 GB" not in said
    assert "0.0092 GB on disk" in said
    assert said.endswith("raise budget.disk_gb or run `dgg-ray gc OUT`")


def test_two_stages_that_do_not_fit_together_wait_for_each_other(measured):
    desk = Desk(measured.store, purse=purse(measured, 12))
    one, other = (WorkItem(measured.path(name)[0]) for name in ("fours", "nines"))
    for item in (one, other):
        assert desk.need(item) == "queued"
    assert desk.take("a") == one
    assert desk.take("b") is None
    published(measured, one.stage, MB)
    desk.done("a", one.key, learned=True, error=None)
    assert desk.take("b") == other  # 2 MB are there, and 9.2 are needed


def test_snapshots_of_what_runs_do_not_refuse_what_waits(measured):
    tight = purse(measured, 12)
    one, other = (WorkItem(measured.path(name)[0]) for name in ("fours", "nines"))
    measured.store.objects.write(checkpoints.name_of(one.stage), b"x" * 4 * MB)
    tight.look()
    assert tight.verdict(other) == "over"
    assert tight.verdict(other, [one]) == "wait"


def test_other_studies_stages_and_what_lies_about_count(measured):
    (item,) = (WorkItem(stage) for stage in measured.path("fours"))
    tight = purse(measured, 12)
    assert tight.verdict(item) == "go"
    published(measured, measured.path("nines", seed=5)[0], 3 * MB)
    assert tight.verdict(item) == "go"  # a minute may pass before others' work is seen
    tight.lose(1.0)
    assert tight.verdict(item) == "over"
    assert tight.spent == weight(measured.store.folder)


def test_without_a_size_nothing_starts(world):
    (item,) = (WorkItem(stage) for stage in world.path("fours"))
    blind = purse(world, 1e6)
    assert blind.verdict(item) == "over"
    assert "what it takes is not known" in str(blind.refusal(item))
    assert blind.verdict(replace(item, profile="setup")) == "go"


def test_the_comparison_keeps_its_place_on_the_disk(measured):
    item, final = (WorkItem(measured.path(name)[0]) for name in ("fours", "nines"))
    final = replace(final, evaluations=(measured.evaluation("nines"),))
    assert purse(measured, 19.9, [final]).verdict(item) == "go"
    tight = purse(measured, 19, [final])
    assert tight.verdict(item) == "over"  # 1 + 9.2 + 9.3
    assert tight.verdict(final) == "go"


def test_the_cap_that_refuses_is_named(measured):
    (item,) = (WorkItem(stage) for stage in measured.path("fours"))

    def both(**caps):
        study = study_of(measured, budget=Budget(**caps), search=None)
        return budget.purse(study, measured.store, lambda study: [])

    roomy = both(worker_hours=1, disk_gb=1)
    assert [type(cap) for cap in roomy.caps] == [Hours, Disk]
    assert roomy.verdict(item) == "go"
    assert "raise budget.disk_gb or" in str(both(worker_hours=1, disk_gb=0.005).refusal(item))
    measured.store.measure(
        replace(item, profile="1xgpu1-auto"),
        {"meaning": item.stage.meaning, "workers": "1xgpu1-auto", "study": "toy", "bytes": MB}
        | {
            "cost": {"seconds": 7200.0},
            "begin": [{"n": 1, "seconds": 1.0}],
            "answer": [],
            "learn": [{"n": 1, "seconds": 3600.0}],
        },
    )
    poor = both(worker_hours=2.5, disk_gb=1)
    assert poor.verdict(item) == "over"
    assert str(poor.refusal(item)).endswith("raise budget.worker_hours")
    with pytest.raises(StudyError) as both_faults:
        both(worker_hours=2.5, disk_gb=0.005).check([item])
    assert [fault.path for fault in both_faults.value.faults] == ["budget.worker_hours", "budget.disk_gb"]


def test_without_caps_nobody_is_asked_what_runs():
    def nobody():
        pytest.fail("asked")
        yield

    assert Purse().verdict(WorkItem(None), nobody()) == "go"


# -- what a stage leaves ---------------------------------------------------------------------------


@pytest.mark.whole
def test_a_published_stage_keeps_its_adapter_and_nothing_of_its_middle(tmp_path):
    """With L2SP, whose memory holds an anchor, a snapshot has what disk.py counts."""
    from dgg_ray.core.interfaces import Training
    from dgg_ray.execution.worker_groups import workshop

    (tmp_path / "study.yaml").write_text(STUDY)
    study = load_study(tmp_path / "study.yaml")
    study = replace(study, search=None, training=Training(batch_size=4), adapter=Adapter(rank=32))
    study = replace(study, strategy=L2SP(), workers=Workers(checkpoint_steps=1))
    store = StageStore(tmp_path / "stages")
    taken = []
    real = checkpoints.write

    def seen(store, stage, snapshot):
        real(store, stage, snapshot)
        taken.append(sum(store.objects.sizes("inflight/").values()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write", seen)
        shop = workshop(study, store)
        (run, *_) = study.runs()
        for stage in run.stages:
            shop.obtain(WorkItem(stage))
    stage = run.stages[1]
    files = {name.split("/", 3)[3] for name in store.objects.sizes(f"files/{stage.key}/")}
    names = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md"}
    assert files == names
    size = store.record(stage)["bytes"]
    sizes = Sizes(study, store)
    assert 3 * size < max(taken) <= sizes.inside(replace(WorkItem(stage), stage=at_seed(stage, 7))) / 2
    assert not list((store.folder / "inflight").iterdir())


def at_seed(stage, seed):
    return replace(stage, seed=seed, parent=replace(stage.parent, seed=seed))


# -- a study that runs out of it -------------------------------------------------------------------

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
def heavy(monkeypatch):
    """Simulated stages with adapters of a megabyte, two snapshots in their middle, and real profiles' sizes.

    Gives the largest size that the store had whenever something was on the disk.
    """
    largest = [0]
    publish, measure = StageStore.publish, StageStore.measure

    def full(self, stage, record, fill):
        inflight = self.folder / "inflight"
        inflight.mkdir(parents=True, exist_ok=True)
        files = [inflight / f"{stage.key}.{i}" for i in range(2 * bool(stage.trained_tasks))]
        for file in files:
            file.write_bytes(b"x" * SNAPSHOT * MB)
        largest[0] = max(largest[0], weight(self.folder))
        for file in files[1:]:
            file.unlink()
        publish(
            self, stage, record, lambda f: (f / "adapter").write_bytes(b"x" * MB * bool(stage.trained_tasks))
        )
        largest[0] = max(largest[0], weight(self.folder))
        for file in files[:1]:
            file.unlink()

    monkeypatch.setattr(StageStore, "publish", full)
    monkeypatch.setattr(StageStore, "measure", lambda s, item, r: measure(s, item, r | {"bytes": MB}))
    return largest


@pytest.mark.whole
def test_a_study_ends_within_its_disk_and_goes_on_with_a_larger_one(tmp_path, capsys, heavy):
    file, out = tmp_path / "study.yaml", tmp_path / "out"

    def run(gigabytes):
        file.write_text(SIMULATED + f"budget: {{disk_gb: {gigabytes}}}\n")
        code = cli.main(["run", str(file), "--out", str(out), "--local", "--quiet"])
        return code, "".join(capsys.readouterr())

    def stages():
        return [
            r for r in StageStore(out / "stages") if r["trained_task"] != "" and r["cost"].get("examples")
        ]

    code, said = run(0.004)
    assert code == 2
    # 2 stages and 3 · 3 of the comparison, and twice 8 MB of snapshots: 27 MB, and papers
    assert "budget.disk_gb: must be at least 0.02" in said
    assert not stages()

    code, said = run(0.03)
    assert code == 0
    assert "would be exceeded" in said
    assert "GB on disk" in said
    few = len(stages())
    assert 9 <= few < 15
    assert heavy[0] <= 30 * MB
    assert not list((out / "stages" / "failed").glob("*"))

    code, said = run(0.05)
    assert code == 0
    assert "would be exceeded" not in said
    assert len(stages()) > few
    assert few * MB < heavy[0] <= 50 * MB

    cli.main(["plan", str(file), "--out", str(out), "--json"])
    told = json.loads(capsys.readouterr().out)["held"]
    assert told == {"bytes": weight(out / "stages"), "cap": 50 * MB}
    cli.main(["status", str(out)])
    assert "of 0.05 GB" in capsys.readouterr().out


def test_over_budget_names_the_disk(measured):
    (item,) = (WorkItem(stage) for stage in measured.path("fours"))
    tight = purse(measured, 5)
    assert isinstance(tight.refusal(item), OverBudget)


def test_three_fleets_never_fill_more_than_the_disk(measured):
    cap, largest, rng = 40 * MB, 0, np.random.default_rng(0)
    store = measured.store
    desk = Desk(store, max_retries=9, purse=purse(measured, cap / MB))
    work_items = [WorkItem(measured.path("fours", seed=seed)[0]) for seed in range(40)]
    answers = [desk.need(item) for item in work_items]
    assert set(answers) == {"queued"}
    running: dict[str, WorkItem] = {}
    while True:
        for group in {"a", "b", "c"} - running.keys():
            if item := desk.take(group):
                running[group] = item
                for i in (0, 1):
                    file = store.folder / "inflight" / f"{item.stage.key}.{i}"
                    file.parent.mkdir(exist_ok=True)
                    file.write_bytes(b"x" * SNAPSHOT * MB)
        largest = max(largest, store.size())
        if not running:
            break
        group = str(rng.choice(sorted(running)))
        item = running.pop(group)
        if rng.random() < 0.2:  # lost, and its snapshots stay until it is learned after all
            desk.lost(group)
            continue
        for file in store.folder.glob(f"inflight/{item.stage.key}.*"):
            file.unlink()
        published(measured, item.stage, MB, study="toy")
        desk.done(group, item.key, learned=True, error=None)
    assert cap - 11 * MB < largest <= cap
    assert desk.counts["trained"] >= 28  # a megabyte each, and 8 for the last one's snapshots
    assert {error["error"] for error in desk.refused.values()} == {"OverBudget"}
