"""Features of frozen encoders: the same in any batch and group, once, and of the side that is asked for."""

from dataclasses import replace

import pytest
import tiny_clip
import torch
from method_samples import MethodWorld, make_learner, make_tasks
from transformers import CLIPModel, CLIPProcessor

from dgg_ray.core.strategy import bind_context
from dgg_ray.strategies._prototypes import Prototypes
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


SIDES = ("image", "question")


def some(world, count=3):
    """Examples of two tasks, whose questions have different lengths."""
    return [*world.tasks["shapes"].examples["test"][:2], *world.tasks["words"].examples["test"][: count - 2]]


def both(world, examples, encoder):
    """Features of images and questions."""
    return [features.extract(world.learner, examples, encoder, side) for side in SIDES]


def watch_encoding(encoder, monkeypatch):
    """The sizes of the batches that are encoded from now on."""
    name = "of_base_model" if encoder == "model" else "of_clip"
    real, sizes = getattr(features, name), []

    def watched(*args):
        size, prepare, encode = real(*args)
        return size, prepare, lambda batch: sizes.append(len(batch)) or encode(batch)

    monkeypatch.setattr(features, name, watched)
    return sizes


def test_features_depend_on_the_batch_by_rounding_alone(world, encoder):
    world.learner.features.clear()
    together = both(world, some(world), encoder)
    alone = []
    for example in some(world):
        world.learner.features.clear()
        alone.append(both(world, [example], encoder))
    for side, found in enumerate(together):
        assert torch.allclose(found, torch.cat([pair[side] for pair in alone]), rtol=1e-4, atol=1e-5)
        assert found.dtype == torch.float32
        assert not torch.allclose(found[0], found[2], rtol=1e-2)


@pytest.mark.parametrize("side", SIDES)
def test_inputs_of_the_same_shapes_are_encoded_together(world, encoder, side, monkeypatch):
    short = world.tasks["words"].examples["test"][:3]
    long = [replace(example, question=f"{example.question} Answer briefly.") for example in short]
    examples = [short[0], long[0], short[1], long[1], short[2]]
    monkeypatch.setattr(features, "BATCH", 2)
    sizes = watch_encoding(encoder, monkeypatch)
    world.learner.features.clear()
    features.extract(world.learner, examples, encoder, side)
    # All images have one size, but the base model sees them beside their questions.
    assert sizes == ([2, 2, 1] if encoder != "model" and side == "image" else [2, 1, 2])


@pytest.mark.parametrize("side", SIDES)
def test_any_number_of_processes_gives_the_same_features(world, encoder, side, monkeypatch):
    learner, examples = world.learner, some(world)
    alone = features.extract(learner, examples, encoder, side)
    sent = []
    monkeypatch.setattr(features.dist, "all_gather_object", lambda got, own: sent.append(own))
    for rank in (0, 1):
        monkeypatch.setattr(learner, "rank", rank)
        monkeypatch.setattr(learner, "world_size", 2)
        with pytest.raises(TypeError):  # nobody answered: what this process would send is in `sent`
            features.extract(learner, examples, encoder, side)
    assert [len(own) for own in sent] == [2, 1]

    def gather(got, own):
        got[:] = sent

    monkeypatch.setattr(features.dist, "all_gather_object", gather)
    assert torch.equal(features.extract(learner, examples, encoder, side), alone)


def test_where_a_forward_pass_takes_all_processes_each_encodes_all_examples(world, monkeypatch):
    learner = world.learner
    monkeypatch.setattr(learner, "zero", 3)
    monkeypatch.setattr(learner, "world_size", 2)
    monkeypatch.setattr(features.dist, "all_gather_object", None)
    sizes = watch_encoding("model", monkeypatch)
    learner.features.clear()
    assert len(features.extract(learner, some(world), "model", "question")) == sum(sizes) == 3


def test_each_side_of_an_example_is_encoded_once_in_a_workers_life(world, encoder, monkeypatch):
    sizes = watch_encoding(encoder, monkeypatch)
    world.learner.features.clear()
    twice = [*some(world), *some(world)]
    for _ in range(3):
        features.extract(world.learner, twice, encoder, "question")
    assert sum(sizes) == 3
    both(world, twice, encoder)
    assert sum(sizes) == 6


def test_disco_looks_at_no_image(world, monkeypatch):
    context = world.loaded(world.train(DISCO(), order=("words",))[0])
    context.fact(Prototypes("model", 4), "words")
    world.learner.features.clear()
    bind_context(strategy := DISCO(prototype_examples=4), context)
    strategy.route(world.tasks["words"].examples["test"])
    assert {side for _, side, _ in world.learner.features} == {"question"}


def test_clip_features_are_the_projected_embeddings_as_published(world, clip):
    example = some(world)[0]
    image, text = both(world, [example], clip)
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
    world.learner.features.clear()
    before = both(world, [example], "model")
    with torch.no_grad():
        for p in world.learner.engine.parameters:
            p.add_(1.0)
    world.learner.features.clear()
    after = both(world, [example], "model")
    with torch.no_grad():
        for p in world.learner.engine.parameters:
            p.sub_(1.0)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_a_missing_image_has_features_of_zero_and_the_question_keeps_its_own(world, encoder):
    example = some(world)[0]
    world.learner.features.clear()
    image, text = both(world, [replace(example, image=None)], encoder)
    assert not image.any()
    assert torch.equal(text, both(world, [example], encoder)[1])


def test_pickles_are_never_read(tmp_path):
    folder = tiny_clip.clip(tmp_path / "clip")
    torch.save(torch.load, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert [fault[:2] for fault in DISCO(encoder=str(folder)).faults()] == [
        ("encoder", "must hold a CLIP model: *.safetensors is missing")
    ]
    with pytest.raises(OSError, match="safetensors"):
        features.load_clip(str(folder), "cpu")
