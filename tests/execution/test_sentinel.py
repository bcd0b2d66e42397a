"""Kinds of machine: one finished stage is learned again on each further one, and what differs is said."""

import json
import os
from dataclasses import replace

import pytest
import torch
from toy_world import OneWeight

from dgg_ray.analysis import hardware_drift
from dgg_ray.analysis.results import Machine, Machines
from dgg_ray.config.sections import Orders
from dgg_ray.config.study import Study
from dgg_ray.core import environment
from dgg_ray.core.environment import kind
from dgg_ray.core.interfaces import Strategy, Training
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution.hardware_check import Sentinel
from dgg_ray.storage import hardware_notes
from dgg_ray.storage.leases import Holder

OLD, NEW = {"device": "old", "torch": "2.5"}, {"device": "new", "torch": "2.5"}


class Forgetful(OneWeight):
    """On the new machines the last of three examples is answered wrongly."""

    def answer(self, examples, max_new_tokens):
        right = super().answer(examples, max_new_tokens)
        return [*right[:2], "?"][: len(right)]


@pytest.fixture()
def study(world):
    """fours > ones, two seeds; rate 1, so that one step learns a task: θ = 4."""
    data = {name: world.data(name) for name in world.tasks}
    training = Training(epochs=1, batch_size=8, learning_rate=1.0)
    orders = Orders("given", given=(("fours", "ones"),))
    return Study(
        "toy",
        None,  # pyright: ignore
        dict.fromkeys(data),
        Strategy(),
        training=training,
        orders=orders,
        seeds=(0, 1),
        tasks=data,
        fingerprint="model",
    )


def chain(study, seed=0):
    stages = study.run_of(("fours", "ones"), seed).stages
    return [WorkItem(stage, (study.evaluation("fours", "test"),)) for stage in stages]


def worker(world, study, where, learner=None):
    shop = replace(world.shop, where=lambda: where, learner=learner or OneWeight())
    return shop, Sentinel(study, shop)


def test_the_kind_that_published_the_stage_is_noted_for_nothing(world, study):
    first, second = chain(study)
    shop, watch = worker(world, study, OLD)
    watch.before(first)
    assert not watch.settled  # nothing is finished yet
    shop.obtain(first)
    taught = len(shop.learner.taught)
    watch.before(second)
    assert watch.settled
    assert len(shop.learner.taught) == taught
    note = hardware_notes.noted(world.store, kind(OLD), "model")
    assert (note["reference"], note["key"]) == (kind(OLD).id, first.stage.key)
    assert [cell["score"] for cell in note["cells"]] == [1.0]


def test_another_kind_learns_the_stage_again_once_and_publishes_nothing(world, study):
    first, second = chain(study)
    shop, _ = worker(world, study, OLD)
    shop.obtain(first)
    before = sorted(world.store.folder.rglob("manifest.json"))

    shop, watch = worker(world, study, NEW, Forgetful())
    watch.before(second)
    assert shop.learner.begun == ["fours"]
    assert sorted(world.store.folder.rglob("manifest.json")) == before
    note = hardware_notes.noted(world.store, kind(NEW), "model")
    assert [cell["score"] for cell in note["cells"]] == [pytest.approx(2 / 3)]
    assert note["reference"] == kind(OLD).id
    assert note["weights"] == note["published_weights"]  # it learned the same, and answers otherwise

    again, watch = worker(world, study, NEW)
    watch.before(second)
    assert watch.settled
    assert again.learner.begun == []


def test_of_workers_of_a_kind_that_begin_together_one_learns_it_and_none_waits(world, study):
    first, second = chain(study)
    shop, _ = worker(world, study, OLD)
    shop.obtain(first)
    meanwhile = []

    class Slow(Forgetful):
        def answer(self, examples, max_new_tokens):
            other, watch = worker(world, study, NEW)
            watch.me = Holder("another", "another host", 1)
            watch.before(second)
            meanwhile.append((watch.settled, other.learner.begun))
            return super().answer(examples, max_new_tokens)

    shop, watch = worker(world, study, NEW, Slow())
    watch.before(second)
    assert shop.learner.begun == ["fours"]
    assert meanwhile == [(True, [])]
    assert hardware_notes.noted(world.store, kind(NEW), "model")


def test_a_sentinel_that_fails_leaves_the_work_alone(world, study):
    first, second = chain(study)
    shop, _ = worker(world, study, OLD)
    shop.obtain(first)

    class Broken(OneWeight):
        def answer(self, examples, max_new_tokens):
            raise RuntimeError("no memory")

    shop, watch = worker(world, study, NEW, Broken())
    watch.before(second)
    assert watch.settled
    assert hardware_notes.noted(world.store, kind(NEW), "model") is None


def test_where_a_search_gives_the_study_no_first_stage_the_works_own_is_taken(world, study):
    first, second = chain(replace(study, training=replace(study.training, epochs=2)))
    shop, _ = worker(world, study, OLD)
    shop.obtain(first)
    shop, watch = worker(world, study, NEW)
    watch.before(second)
    assert hardware_notes.noted(world.store, kind(NEW), "model")["key"] == first.stage.key


# -- drift -----------------------------------------------------------------------------------------


def published(world, study, seed, score, task="fours"):
    """A first stage, published from an old machine with a score."""
    order = (task, *(name for name in ("fours", "ones") if name != task))
    stage = study.run_of(order, seed).stages[0]
    record = {"environment": OLD, "cost": {}}
    evaluation = study.evaluation(task, "test")
    world.store.publish(stage, record, lambda folder: None)
    cell = {"evaluation": evaluation.key, "task": task, "split": "test", "score": score, "n": 10}
    world.store.sit(stage, [cell], lambda folder: None)
    return stage, cell


def noted(world, stage, cell, score):
    note = {"key": stage.key, "meaning": stage.meaning, "reference": kind(OLD).id, "weights": "a"}
    note |= {"cells": [cell | {"score": score}], "environment": NEW, "published_weights": "b"}
    hardware_notes.note(world.store, kind(NEW), note)
    hardware_notes.note(world.store, kind(OLD), note | {"environment": OLD, "cells": [cell]})


BOTH = {kind(OLD).name: 3, kind(NEW).name: 1}


def test_drift_above_the_spread_over_seeds_is_a_warning(world, study):
    stage, cell = published(world, study, 0, 0.50)
    published(world, study, 1, 0.54)  # sd = 0.04 / √2 = 0.0283
    noted(world, stage, cell, 0.45)
    found = hardware_drift.machines(study, world.store, BOTH)
    assert found.noise == pytest.approx(0.04 / 2**0.5)
    assert found.largest == Machine("new, torch 2.5", 1, pytest.approx(0.05), "fours test", same=False)
    assert found.apart
    (said,) = hardware_drift.sentences(found)
    assert said == (
        "Warning: the stages were learned on 2 kinds of machine that differ by more than seeds do: largest "
        "drift 5.0 points (fours test, on new, torch 2.5), seed noise 2.8 points, the standard deviation "
        "over 2 seeds of that stage. Compare settings that were learned on one kind, or learn all on one."
    )
    assert hardware_drift.warning(found) == [said]
    assert hardware_drift.rows(found) == [
        ["old, torch 2.5", "3", "reference", "–", "–"],
        ["new, torch 2.5", "1", "5.0", "fours test", "other digits"],
    ]


def test_drift_below_it_is_said_to_be_within_seed_noise(world, study):
    stage, cell = published(world, study, 0, 0.50)
    published(world, study, 1, 0.54)
    noted(world, stage, cell, 0.52)
    found = hardware_drift.machines(study, world.store, BOTH)
    (said,) = hardware_drift.sentences(found)
    assert "2 kinds of machine, largest drift 2.0 points" in said
    assert "within seed noise (2.8 points" in said
    assert hardware_drift.warning(found) == []


def test_seeds_of_other_tasks_stand_in_and_one_seed_judges_nothing(world, study):
    stage, cell = published(world, study, 0, 0.50)
    noted(world, stage, cell, 0.45)
    found = hardware_drift.machines(study, world.store, BOTH)
    assert found.noise is None
    assert "cannot be judged against seed noise" in hardware_drift.sentences(found)[0]
    published(world, study, 0, 0.1, "ones")
    published(world, study, 1, 0.3, "ones")  # sd = 0.2 / √2
    found = hardware_drift.machines(study, world.store, BOTH)
    assert found.noise == pytest.approx(0.2 / 2**0.5)
    assert found.noise_of == "up to 2 seeds of the same stage of other tasks"
    assert not found.apart


def test_one_kind_says_nothing_and_a_kind_without_a_sentinel_is_named():
    assert hardware_drift.sentences(Machines((Machine("old", 4),))) == []
    both = Machines((Machine("old", 4, reference=True), Machine("new", 4)))
    assert hardware_drift.sentences(both) == [
        "The stages were learned on 2 kinds of machine; how far these drift apart was not measured."
    ]


# -- environment -----------------------------------------------------------------------------------


def test_a_gpus_model_driver_and_cuda_are_of_its_kind_and_its_host_is_not(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    environment.driver.cache_clear()
    found = environment.environment()
    environment.driver.cache_clear()
    assert (found["device"], found["driver"], found["cuda"]) == ("H100", "550.54.15", "12.8")
    assert kind(found).name.startswith("H100, driver 550.54.15, cuda 12.8, torch ")
    assert kind(found) == kind(found | {"host": "another", "threads": "64"})
    assert kind(found) != kind(found | {"driver": "560.0"})


def test_without_a_gpu_no_driver_is_asked_for_and_the_code_has_a_digest(monkeypatch):
    monkeypatch.setattr(environment, "driver", lambda: pytest.fail("asked"))
    found = environment.environment()
    assert found["driver"] == "" or torch.cuda.is_available()
    assert len(found["source"]) == len(found["packages"]) == 12
    assert {"ray", "torch", "transformers", "peft"} <= found.keys()


def test_instructions_and_the_switches_that_choose_kernels_are_of_a_processors_kind(monkeypatch):
    for name in environment.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = environment.environment()
    assert kind(here) == kind(environment.environment())
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    held_back = environment.environment()
    assert held_back["switches"] == "MKL_CBWR=COMPATIBLE"
    monkeypatch.delenv("MKL_CBWR")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    plain = environment.environment()
    monkeypatch.setattr(environment, "flags", lambda: "other")
    other = environment.environment()
    numpy = here | {"numpy": "1.0"}
    assert len({kind(found).id for found in (here, held_back, plain, other, numpy)}) == 5
    gpu = {"device": "H100", "driver": "550"}  # a processor that feeds a GPU changes no digit
    assert kind(here | gpu) == kind(other | gpu)


def test_where_it_was_learned_is_kept_with_the_stage_and_not_in_its_key(world, study):
    first, _ = chain(study)
    shop, _ = worker(world, study, OLD)
    shop.obtain(first)
    assert world.store.record(first.stage)["environment"] == OLD
    assert "old" not in json.dumps(first.stage.meaning)
