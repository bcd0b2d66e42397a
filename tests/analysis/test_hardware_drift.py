"""Drift between machine types: the difference of a stage that was trained on both, against seed noise."""

import pytest
from hardware_samples import NEW, OLD, two_task_study

from dgg_ray.analysis import hardware_drift
from dgg_ray.analysis.results import HardwareDrift, MachineDrift
from dgg_ray.core.environment import machine_type
from dgg_ray.storage import hardware_notes


@pytest.fixture()
def study(world):
    return two_task_study(world)


def publish_stage(world, study, seed, score, task="fours"):
    """Publish a first stage with a score, from an old machine; return it and its score entry."""
    order = (task, *(name for name in ("fours", "ones") if name != task))
    stage = study.runs.run(order, seed).stages[0]
    record = {"environment": OLD, "cost": {}}
    evaluation = study.runs.evaluation(task, "test")
    world.store.publish(stage, record, lambda folder: None)
    entry = {"evaluation": evaluation.key, "task": task, "split": "test", "score": score, "n": 10}
    world.store.publish_evaluations(stage, [entry], lambda folder: None)
    return stage, entry


def put_checks(world, stage, entry, score):
    """Put the stage's result on the old machine, and another score on the new one."""
    result = {"key": stage.key, "meaning": stage.meaning, "reference": machine_type(OLD).id, "weights": "a"}
    result |= {"scores": [entry | {"score": score}], "environment": NEW, "published_weights": "b"}
    hardware_notes.put_check(world.store, machine_type(NEW), result)
    hardware_notes.put_check(world.store, machine_type(OLD), result | {"environment": OLD, "scores": [entry]})


BOTH = {machine_type(OLD).name: 3, machine_type(NEW).name: 1}


def test_drift_above_the_spread_over_seeds_is_a_warning(world, study):
    stage, entry = publish_stage(world, study, 0, 0.50)
    publish_stage(world, study, 1, 0.54)  # sd = 0.04 / √2 = 0.0283
    put_checks(world, stage, entry, 0.45)
    drift = hardware_drift.machine_drifts(study, world.store, BOTH)
    assert drift.seed_noise == pytest.approx(0.04 / 2**0.5)
    assert drift.largest_drift == MachineDrift(
        "new, torch 2.5", 1, pytest.approx(0.05), "fours test", weights_identical=False
    )
    assert drift.exceeds_seed_noise
    (sentence,) = hardware_drift.drift_sentences(drift)
    assert sentence == (
        "Warning: the stages were trained on 2 machine types whose largest difference exceeds seed noise: "
        "largest drift 5.0 points (fours test, on new, torch 2.5), seed noise 2.8 points, the standard "
        "deviation over 2 seeds of that stage. Compare settings that were trained on one type, or train all "
        "on one."
    )
    assert hardware_drift.drift_warnings(drift) == [sentence]
    assert hardware_drift.machine_rows(drift) == [
        ["old, torch 2.5", "3", "reference", "–", "–"],
        ["new, torch 2.5", "1", "5.0", "fours test", "different digits"],
    ]


def test_drift_below_it_is_within_seed_noise(world, study):
    stage, entry = publish_stage(world, study, 0, 0.50)
    publish_stage(world, study, 1, 0.54)
    put_checks(world, stage, entry, 0.52)
    drift = hardware_drift.machine_drifts(study, world.store, BOTH)
    (sentence,) = hardware_drift.drift_sentences(drift)
    assert "2 machine types, largest drift 2.0 points" in sentence
    assert "within seed noise (2.8 points" in sentence
    assert hardware_drift.drift_warnings(drift) == []


def test_seeds_of_other_tasks_stand_in_and_one_seed_says_nothing(world, study):
    stage, entry = publish_stage(world, study, 0, 0.50)
    put_checks(world, stage, entry, 0.45)
    drift = hardware_drift.machine_drifts(study, world.store, BOTH)
    assert drift.seed_noise is None
    assert "cannot be compared with seed noise" in hardware_drift.drift_sentences(drift)[0]
    publish_stage(world, study, 0, 0.1, "ones")
    publish_stage(world, study, 1, 0.3, "ones")  # sd = 0.2 / √2
    drift = hardware_drift.machine_drifts(study, world.store, BOTH)
    assert drift.seed_noise == pytest.approx(0.2 / 2**0.5)
    assert drift.seed_noise_basis == "up to 2 seeds of the same stage of other tasks"
    assert not drift.exceeds_seed_noise


def test_one_machine_type_has_no_drift_and_a_type_without_a_check_is_named():
    assert hardware_drift.drift_sentences(HardwareDrift((MachineDrift("old", 4),))) == []
    both = HardwareDrift((MachineDrift("old", 4, is_reference=True), MachineDrift("new", 4)))
    assert hardware_drift.drift_sentences(both) == [
        "The stages were trained on 2 machine types; how far these drift apart was not measured."
    ]
