"""Hardware check: one finished stage is trained again, once, on each other machine type."""

import json
from dataclasses import replace

import pytest
from hardware_samples import NEW, OLD, two_task_study
from toy_world import OneWeight

from dgg_ray.core.environment import machine_type
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution.hardware_check import HardwareCheck
from dgg_ray.storage import hardware_notes
from dgg_ray.storage.leases import LeaseOwner


class ForgetfulLearner(OneWeight):
    """Answers the last of three examples wrongly."""

    def answer(self, examples, max_new_tokens, route=None):
        right = super().answer(examples, max_new_tokens)
        return [*right[:2], "?"][: len(right)]


@pytest.fixture()
def study(world):
    return two_task_study(world)


def chain(study, seed=0):
    stages = study.runs.run(("fours", "ones"), seed).stages
    return [WorkItem(stage, (study.runs.evaluation("fours", "test"),)) for stage in stages]


def worker_on(world, study, machine, learner=None):
    """A stage runner on a machine, and its hardware check."""
    runner = replace(world.runner, describe_environment=lambda: machine, learner=learner or OneWeight())
    return runner, HardwareCheck(study, runner)


def result_on(world, machine):
    return hardware_notes.get_check(world.store, machine_type(machine), "model")


def test_the_machine_type_that_published_the_stage_has_its_result_at_no_cost(world, study):
    first, second = chain(study)
    runner, check = worker_on(world, study, OLD)
    check.run_if_due(first)
    assert not check.settled  # nothing is finished yet
    runner.run(first)
    taught = len(runner.learner.taught)
    check.run_if_due(second)
    assert check.settled
    assert len(runner.learner.taught) == taught
    result = result_on(world, OLD)
    assert (result["reference"], result["key"]) == (machine_type(OLD).id, first.stage.key)
    assert [entry["score"] for entry in result["scores"]] == [1.0]


def test_another_machine_type_trains_the_stage_again_once_and_publishes_nothing(world, study):
    first, second = chain(study)
    runner, _ = worker_on(world, study, OLD)
    runner.run(first)
    before = sorted(world.store.backend.root.rglob("manifest.json"))

    runner, check = worker_on(world, study, NEW, ForgetfulLearner())
    check.run_if_due(second)
    assert runner.learner.begun == ["fours"]
    assert sorted(world.store.backend.root.rglob("manifest.json")) == before
    result = result_on(world, NEW)
    assert [entry["score"] for entry in result["scores"]] == [pytest.approx(2 / 3)]
    assert result["reference"] == machine_type(OLD).id
    assert result["weights"] == result["published_weights"]  # the same training, other answers

    again, check = worker_on(world, study, NEW)
    check.run_if_due(second)
    assert check.settled
    assert again.learner.begun == []


def test_of_workers_of_one_type_that_start_together_one_runs_the_check_and_none_waits(world, study):
    first, second = chain(study)
    runner, _ = worker_on(world, study, OLD)
    runner.run(first)
    meanwhile = []

    class SlowLearner(ForgetfulLearner):
        def answer(self, examples, max_new_tokens, route=None):
            other, check = worker_on(world, study, NEW)
            check.lease_owner = LeaseOwner("another", "another host", 1)
            check.run_if_due(second)
            meanwhile.append((check.settled, other.learner.begun))
            return super().answer(examples, max_new_tokens)

    runner, check = worker_on(world, study, NEW, SlowLearner())
    check.run_if_due(second)
    assert runner.learner.begun == ["fours"]
    assert meanwhile == [(True, [])]
    assert result_on(world, NEW)


def test_a_check_that_fails_does_not_disturb_the_work(world, study):
    first, second = chain(study)
    runner, _ = worker_on(world, study, OLD)
    runner.run(first)

    class BrokenLearner(OneWeight):
        def answer(self, examples, max_new_tokens, route=None):
            raise RuntimeError("no memory")

    runner, check = worker_on(world, study, NEW, BrokenLearner())
    check.run_if_due(second)
    assert check.settled
    assert result_on(world, NEW) is None

    runner, check = worker_on(world, study, NEW)  # the next worker of this type need not wait for a lease
    check.lease_owner = LeaseOwner("another", "another host", 1)
    check.run_if_due(second)
    assert result_on(world, NEW)


def test_without_a_first_stage_of_the_studys_own_that_of_the_present_item_is_used(world, study):
    first, second = chain(replace(study, training=replace(study.training, epochs=2)))
    runner, _ = worker_on(world, study, OLD)
    runner.run(first)
    runner, check = worker_on(world, study, NEW)
    check.run_if_due(second)
    assert result_on(world, NEW)["key"] == first.stage.key


def test_the_environment_is_kept_with_the_stage_and_not_in_its_key(world, study):
    first, _ = chain(study)
    runner, _ = worker_on(world, study, OLD)
    runner.run(first)
    assert world.store.record(first.stage)["environment"] == OLD
    assert "old" not in json.dumps(first.stage.meaning)
