"""A base model handed from study to study: the second study stores what it stores in a fresh process."""

import pytest
import torch
from safetensors.torch import load_file

from dgg_ray import load_study
from dgg_ray.models._architecture import checkpoint_activations
from dgg_ray.models.embedded import Embedded
from dgg_ray.storage.stage_store import open_store
from dgg_ray.training.kept_model import KeptModel, describe
from dgg_ray.training.setup import build_stage_runner, keep_model

# The first studies: each puts something else on the base model. The second one has other tasks and settings.
LEAVING = {
    "slots": ({"name": "o_lora"}, {}, {}),
    "experts": ({"name": "moe_lora"}, {"rank": 8}, {}),
    "prompt": ({"name": "modal_prompt"}, {}, {}),
    "projector": (
        {"name": "finetune"},
        {},
        {"projector_learning_rate": 1e-2, "gradient_checkpointing": True},
    ),
}
SECOND = {
    "name": "second",
    "model": "embedded",
    "tasks": [
        {"name": name, "reader": "embedded", "train": 16, "validation": 10, "test": 10}
        for name in ("charts", "shapes")
    ],
    "strategy": {"name": "hide"},  # reads features of the base model, which are cached by example
    "adapter": {"rank": 2},
    "training": {"batch_size": 8, "learning_rate": 5e-3, "projector_learning_rate": 1e-3},
    "protocol": {"max_new_tokens": 2, "baselines": []},
}


def first_study(strategy, adapter, training):
    tasks = [
        {"name": name, "reader": "embedded", "train": 16, "validation": 10, "test": 10}
        for name in ("words", "digits")
    ]
    training = {"batch_size": 8, "learning_rate": 1e-2, **training}
    changes = {"name": "first", "tasks": tasks, "strategy": strategy, "training": training}
    return load_study(SECOND | changes | {"adapter": {"rank": 4} | adapter})


def run(study, folder, kept):
    """Train and evaluate the study's run into a store of its own; return all it stored but times."""
    store = open_store(folder)
    runner = build_stage_runner(study, store, kept=kept)
    stored = {}
    for item in study.runs.work_items(study.runs[0], ("test",)):
        runner.run(item)
        folder = store.open(item.stage)
        for file in sorted(folder.rglob("*.safetensors")):
            stored |= {(item.key, file.name, name): t for name, t in load_file(file).items()}
        stored |= {
            (item.key, e, "score"): torch.tensor(s["score"])
            for e, s in store.score_entries(item.stage).items()
        }
    if kept:
        keep_model(runner, kept)
    return stored


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What the second study stores in a process of its own."""
    torch.set_num_threads(1)
    return run(load_study(SECOND), tmp_path_factory.mktemp("fresh"), None)


@pytest.mark.whole
@pytest.mark.parametrize("leaving", LEAVING)
def test_a_study_on_a_kept_model_stores_the_same_bytes_as_in_a_fresh_process(
    leaving, fresh, tmp_path, monkeypatch
):
    loads, load = [], Embedded.load
    monkeypatch.setattr(Embedded, "load", lambda self: (loads.append(1), load(self))[1])
    kept = KeptModel()
    run(first_study(*LEAVING[leaving]), tmp_path / "first", kept)
    warm = run(load_study(SECOND), tmp_path / "second", kept)
    assert warm.keys() == fresh.keys()
    assert all(torch.equal(warm[name], fresh[name]) for name in fresh)
    assert len(loads) == 1  # by the first study


@pytest.mark.whole
def test_a_model_that_a_study_changed_is_loaded_anew(monkeypatch):
    model, device, kept = Embedded(), torch.device("cpu"), KeptModel()
    loaded = kept.take(model, "a", device)
    kept.put_back(loaded)
    assert kept.take(model, "a", device) is loaded
    with torch.no_grad():
        loaded.base.lm_head.weight.data[0, 0] += 1e-3
    kept.put_back(loaded)
    assert kept.take(model, "a", device) is not loaded


@pytest.mark.whole
def test_another_model_is_loaded_and_takes_the_place_of_the_kept_one():
    model, device, kept = Embedded(), torch.device("cpu"), KeptModel()
    loaded = kept.take(model, "a", device)
    kept.put_back(loaded)
    other = kept.take(model, "b", device)
    assert other is not loaded
    kept.put_back(other)
    assert kept.take(model, "a", device) is not loaded


@pytest.mark.whole
def test_a_model_that_was_not_given_back_is_not_used_again():
    """The study failed: whatever it left on the model stays with it."""
    model, device, kept = Embedded(), torch.device("cpu"), KeptModel()
    loaded = kept.take(model, "a", device)
    assert kept.take(model, "a", device) is not loaded


@pytest.mark.parametrize(
    "change",
    [
        lambda base: base.lm_head.register_forward_hook(lambda *_: None),
        lambda base: base.train(),
        lambda base: base.lm_head.requires_grad_(True),
        lambda base: checkpoint_activations(base, True),
        lambda base: setattr(base.generation_config, "max_new_tokens", 3),
        lambda base: base.register_buffer("extra", torch.zeros(1)),
        lambda base: base.lm_head.half(),
    ],
)
def test_a_description_shows_every_kind_of_change(change):
    base, _ = Embedded().load()
    before = tuple(describe(base.requires_grad_(False)))
    assert tuple(describe(base)) == before
    change(base)
    assert tuple(describe(base)) != before
