"""Features of frozen encoders: of each example by itself, once, and the same in any group."""

from dataclasses import replace

import pytest
import tiny_clip
import torch
from method_samples import MethodWorld, make_learner, make_tasks
from transformers import CLIPModel, CLIPProcessor

from dgg_ray.strategies.disco import DISCO
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.training import features
from dgg_ray.training.encoding import load_image


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = MethodWorld(make_learner(), make_tasks(), tmp_path_factory.mktemp("world") / "store")
    (stage,) = world.train(Finetune(), order=("words",))
    world.loaded(stage)
    return world


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(tiny_clip.clip(tmp_path_factory.mktemp("encoders") / "clip"))


@pytest.fixture(params=["model", "clip"])
def encoder(request, clip):
    return clip if request.param == "clip" else "model"


def some(world, count=3):
    """Examples of two tasks, whose questions have different lengths."""
    return [*world.tasks["shapes"].examples["test"][:2], *world.tasks["words"].examples["test"][: count - 2]]


def test_features_do_not_depend_on_the_batch(world, encoder):
    together = features.extract(world.learner, some(world), encoder)
    world.learner.features.clear()
    alone = [features.extract(world.learner, [example], encoder) for example in some(world)]
    for side in (0, 1):
        assert torch.equal(together[side], torch.cat([pair[side] for pair in alone]))
        assert together[side].dtype == torch.float32
        assert not torch.allclose(together[side][0], together[side][2])


def test_any_number_of_processes_gives_the_same_features(world, encoder, monkeypatch):
    learner, examples = world.learner, some(world)
    alone = features.extract(learner, examples, encoder)
    sent = []
    monkeypatch.setattr(features.dist, "all_gather_object", lambda got, own: sent.append(own))
    for rank in (0, 1):
        monkeypatch.setattr(learner, "rank", rank)
        monkeypatch.setattr(learner, "world_size", 2)
        with pytest.raises(TypeError):  # nobody answered: what this process would send is in `sent`
            features.extract(learner, examples, encoder)
    assert [len(own) for own in sent] == [2, 1]

    def gather(got, own):
        got[:] = sent

    monkeypatch.setattr(features.dist, "all_gather_object", gather)
    for side, together in enumerate(features.extract(learner, examples, encoder)):
        assert torch.equal(together, alone[side])


def test_an_example_is_encoded_once_in_a_workers_life(world, encoder, monkeypatch):
    name = "model_features" if encoder == "model" else "clip_features"
    real, calls = getattr(features, name), []
    monkeypatch.setattr(features, name, lambda *args: calls.append(1) or real(*args))
    world.learner.features.clear()
    for _ in range(3):
        features.extract(world.learner, some(world), encoder)
    assert len(calls) == 3


def test_clip_features_are_the_projected_embeddings_as_published(world, clip):
    example = some(world)[0]
    image, text = features.extract(world.learner, [example], clip)
    model = CLIPModel.from_pretrained(clip).eval()
    processor = CLIPProcessor.from_pretrained(clip)
    inputs = processor(text=[example.question], images=load_image(example), return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    # CLIP's own output is normalised to length 1; the cosine does that here.
    assert torch.allclose(torch.nn.functional.normalize(image), output.image_embeds, atol=1e-6)
    assert torch.allclose(torch.nn.functional.normalize(text), output.text_embeds, atol=1e-6)
    assert image.shape == text.shape == (1, 8)


def test_the_base_models_features_are_those_of_the_model_without_the_adapter(world):
    example = some(world)[0]
    before = features.extract(world.learner, [example], "model")
    with torch.no_grad():
        for p in world.learner.engine.parameters:
            p.add_(1.0)
    world.learner.features.clear()
    after = features.extract(world.learner, [example], "model")
    with torch.no_grad():
        for p in world.learner.engine.parameters:
            p.sub_(1.0)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_a_missing_image_has_features_of_zero_and_the_question_keeps_its_own(world, encoder):
    example = some(world)[0]
    image, text = features.extract(world.learner, [replace(example, image=None)], encoder)
    assert not image.any()
    assert torch.equal(text, features.extract(world.learner, [example], encoder)[1])


def test_pickles_are_never_read(tmp_path):
    folder = tiny_clip.clip(tmp_path / "clip")
    torch.save(torch.load, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert [fault[:2] for fault in DISCO(encoder=str(folder)).faults()] == [
        ("encoder", "must hold a CLIP model: *.safetensors is missing")
    ]
    with pytest.raises(OSError, match="safetensors"):
        features.load_clip(str(folder), "cpu")
