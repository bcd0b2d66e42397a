"""Stage keys, the stage tree, and the stage store."""

import json
import os
import time
import warnings
from dataclasses import replace

import pytest

from dgg_ray.core.errors import StoreError
from dgg_ray.core.interfaces import Adapter
from dgg_ray.core.stage import WorkItem, distinct_stages, untouched_stage
from dgg_ray.storage.manifest import manifest_name
from dgg_ray.storage.stage_store import DRAFT_S, open_store
from dgg_ray.strategies.dgg import DGG
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.joint import Joint
from dgg_ray.strategies.replay import Replay


def keys(stages):
    return [stage.key for stage in stages]


def test_runs_with_equal_first_tasks_share_their_first_stages(world):
    a = world.stages_of("ones", "fours", "nines")
    b = world.stages_of("ones", "fours")
    c = world.stages_of("fours", "ones")
    assert keys(a)[:2] == keys(b)
    assert not set(keys(b)) & set(keys(c))
    assert len(distinct_stages([*a, *b, *c])) == 5


def test_the_first_stage_is_the_same_for_every_sequential_strategy(world):
    strategies = (Finetune(), Replay(buffer=2), DGG(alpha=0.5, buffer=2), DGG(alpha=1.0))
    paths = [world.stages_of("ones", "fours", strategy=s) for s in strategies]
    assert len({p[0].key for p in paths}) == 1
    assert len({p[1].key for p in paths}) == 4


def test_alpha_of_a_later_task_leaves_earlier_stages_alone(world):
    low = world.stages_of("ones", "fours", "nines", strategy=DGG(alpha={"fours": 0.1, "nines": 0.1}))
    high = world.stages_of("ones", "fours", "nines", strategy=DGG(alpha={"fours": 0.1, "nines": 0.9}))
    assert keys(low)[:2] == keys(high)[:2]
    assert keys(low)[2] != keys(high)[2]


def test_everything_that_affects_the_outcome_is_in_the_key(world):
    (stage,) = world.stages_of("ones")
    changed = (
        replace(stage, model="other"),
        replace(stage, seed=1),
        replace(stage, adapter=Adapter(rank=4)),
        replace(stage, training=replace(stage.training, learning_rate=0.5)),
        replace(stage, data=("other data",)),
        replace(stage, parent=world.stages_of("fours")[0]),
    )
    assert len({stage.key, *keys(changed)}) == 7


def test_nothing_else_is_in_the_key(world):
    (stage,) = world.stages_of("ones")
    # alpha = 2 · rank is what leaving it out means; micro-batches change who computes, not what
    same = replace(stage, adapter=Adapter(rank=8, alpha=16.0))
    assert same.key == stage.key
    assert replace(stage, training=replace(stage.training, micro_batch_size=1)).key == stage.key


def test_keys_do_not_change_between_versions(world):
    # A store is kept for months: a change here needs a new stage.FORMAT.
    assert (
        world.stages_of("ones", "fours", strategy=DGG(alpha=0.25, buffer=3))[1].key[:16] == "0dd9c45aa4ecf279"
    )


def test_joint_is_one_stage_whatever_the_order(world):
    one = world.stages_of("ones", "fours", "nines", strategy=Joint())
    other = world.stages_of("nines", "ones", "fours", strategy=Joint())
    assert keys(one) == keys(other)
    assert len(one) == 1


def test_a_published_stage_has_its_record_and_files(world):
    (stage,) = world.stages_of("ones")
    assert world.store.record(stage) is None
    assert world.store.open(stage) is None

    world.store.publish(stage, {"cost": {"steps": 3}}, lambda f: (f / "weights").write_text("w"))

    assert world.store.record(stage)["cost"] == {"steps": 3}
    assert (world.store.open(stage) / "weights").read_text() == "w"
    assert [record["key"] for record in world.store] == [stage.key]
    assert not list((world.store.backend.root / "drafts").iterdir())


def test_the_first_of_two_publications_stays(world):
    (stage,) = world.stages_of("ones")
    for text in ("first", "second"):
        world.store.publish(stage, {}, lambda f, t=text: (f / "weights").write_text(t))
    assert (world.store.open(stage) / "weights").read_text() == "first"


def manifest(world, stage):
    return world.store.backend.root / manifest_name(stage.key)


@pytest.mark.parametrize("harm", ["change", "remove", "cut"])
def test_a_damaged_stage_is_quarantined_with_a_warning(world, harm):
    (stage,) = world.stages_of("ones")
    world.store.publish(stage, {}, lambda f: (f / "weights").write_text("weights"))
    file = world.store.open(stage) / "weights"
    if harm == "change":
        file.write_text("weightz")
    elif harm == "cut":
        os.truncate(file, 3)
    else:
        file.unlink()

    with pytest.warns(UserWarning, match="is damaged"):
        assert world.store.open(stage) is None

    assert world.store.record(stage) is None
    assert len(list((world.store.backend.root / "quarantined").iterdir())) == 1


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_record_is_detected_without_reading_the_weights(world, cut):
    (stage,) = world.stages_of("ones")
    world.store.publish(stage, {"loss": 1.25}, lambda f: None)
    text = manifest(world, stage).read_text()
    manifest(world, stage).write_text(text[:200] if cut else text.replace("1.25", "1.26"))
    with pytest.warns(UserWarning, match="the record differs from what was written"):
        assert world.store.record(stage) is None


def test_a_writer_that_fails_leaves_nothing_readable(world):
    (stage,) = world.stages_of("ones")

    def dies(folder):
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        world.store.publish(stage, {}, dies)
    assert world.store.record(stage) is None
    assert not list((world.store.backend.root / "drafts").iterdir())


def test_only_evaluations_without_a_record_are_missing(world):
    (stage,) = world.stages_of("ones")
    ones, fours = world.evaluation("ones"), world.evaluation("fours")
    assert world.store.missing(WorkItem(stage, (ones,))) is None
    world.store.publish(stage, {}, lambda f: None)
    cell = {"evaluation": ones.key, "task": "ones", "split": "test", "score": 0.5, "n": 2}
    world.store.publish_evaluations(stage, [cell], lambda f: None)

    assert world.store.missing(WorkItem(stage, (ones, fours))) == (fours,)
    assert not world.store.has(WorkItem(stage, (ones, fours)))
    assert world.store.has(WorkItem(stage, (ones,)))
    assert world.store.score_entries(stage)[ones.key]["score"] == 0.5


def test_retraining_a_damaged_stage_keeps_its_stored_evaluations(world):
    (stage,) = world.stages_of("ones")
    item = WorkItem(stage, (world.evaluation("ones"), world.evaluation("fours")))
    world.runner.run(item)
    cells = world.store.score_entries(stage)
    (world.store.open(stage) / "adapter" / "theta.safetensors").write_bytes(b"noise")
    with pytest.warns(UserWarning, match="is damaged"):
        assert world.store.open(stage) is None
    world.runner.train(stage)
    assert world.store.has(item)
    assert {k: c["score"] for k, c in world.store.score_entries(stage).items()} == {
        k: c["score"] for k, c in cells.items()
    }


def test_spelling_a_number_differently_changes_no_key(world):
    (stage,) = world.stages_of("ones")
    whole = replace(stage.training, weight_decay=0, learning_rate=1)
    assert replace(stage, training=whole).key == stage.key


def test_old_drafts_are_swept_and_recent_ones_stay(world):
    for name, age in (("old", 2 * DRAFT_S), ("young", 0)):
        draft = world.store.backend.root / "drafts" / name
        draft.mkdir(parents=True)
        os.utime(draft, (time.time() - age,) * 2)
    world.store.sweep()
    assert [d.name for d in (world.store.backend.root / "drafts").iterdir()] == ["young"]


def test_a_failure_is_stored_until_the_stage_is_finished(world):
    (stage,) = world.stages_of("ones")
    world.store.record_failure(
        stage, {"error": "NonFiniteError", "message": "the loss is nan", "traceback": "…"}
    )
    assert world.store.failure(stage)["error"] == "NonFiniteError"
    world.store.publish(stage, {}, lambda f: None)
    assert world.store.failure(stage) is None


def test_a_failed_evaluation_is_stored_although_its_stage_is_finished(world):
    (stage,) = world.stages_of("ones")
    world.store.publish(stage, {}, lambda f: None)
    world.store.record_failure(stage, {"error": "OSError", "message": "no space", "traceback": ""})
    assert world.store.failure(stage)["error"] == "OSError"
    cell = {"evaluation": world.evaluation("ones").key, "task": "ones", "split": "test", "score": 0.5, "n": 2}
    world.store.publish_evaluations(stage, [cell], lambda f: None)
    assert world.store.failure(stage) is None


def test_the_untouched_model_is_one_stage_per_model():
    assert untouched_stage("a").key == untouched_stage("a").key != untouched_stage("b").key
    assert untouched_stage("a").earlier == ()


def test_two_stores_on_one_folder_see_the_same(world):
    (stage,) = world.stages_of("ones")
    world.store.publish(stage, {}, lambda f: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_store(world.store.backend.root).record(stage)["key"] == stage.key


def test_a_record_describes_what_was_trained(world):
    stage = world.stages_of("ones", "fours", strategy=DGG(alpha=0.5))[1]
    world.store.publish(stage, {}, lambda f: None)
    kept = json.loads(manifest(world, stage).read_text())["content"]["record"]
    assert kept["meaning"]["effect"]["dgg"]["alpha"] == 0.5
    assert kept["meaning"]["learns"][0][0] == "fours"
