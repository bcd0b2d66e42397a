"""Features of images and questions from a frozen encoder, for strategies that tell tasks apart.

    encoder        image                                            question
    model          the mean of its projected image tokens (H)       the mean of its last hidden states (H)
    a CLIP model   the projected image embedding (F)                the projected text embedding (F)

`model` is the untouched base model, which sees the question alone. For CLIP see storage/encoders.py.

Examples whose inputs have the same shapes are encoded together, without padding. So features depend neither
on the batch nor on the number of processes, up to rounding. An encoder's features of an image or a question
are computed once in a worker's life, and only if they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from dgg_ray.core.interfaces import Example
from dgg_ray.storage import encoders
from dgg_ray.training.answer_loss import evaluation_mode
from dgg_ray.training.encoding import Encoded, load_image

if TYPE_CHECKING:
    from dgg_ray.training.learner import PeftLearner

Side = Literal["image", "question"]
Prepare = Callable[[Example], tuple[Hashable, Any]]  # (shapes of the example's inputs, these inputs)
Encode = Callable[[list[Any]], Tensor]  # features (B, F) of inputs of the same shapes
BATCH = 16  # examples that are encoded together


def extract(learner: PeftLearner, examples: Sequence[Example], encoder: str, side: Side) -> Tensor:
    """Features (N, F) of the examples' images or questions, fp32, on the learner's device.

    A missing image has features 0. Every process of a group calls it with the same examples. Each encodes its
    share, or all of them where every forward pass takes all processes.
    """
    if learner.world_size == 1 or learner.zero == 3:
        found = known_features(learner, examples, encoder, side)
    else:
        own = examples[learner.rank :: learner.world_size]
        of_ranks: list[Any] = [None] * learner.world_size
        dist.all_gather_object(of_ranks, known_features(learner, own, encoder, side))
        found = [of_ranks[i % learner.world_size][i // learner.world_size] for i in range(len(examples))]
    return torch.stack(found).to(learner.device)


def known_features(
    learner: PeftLearner, examples: Sequence[Example], encoder: str, side: Side
) -> list[Tensor]:
    """Each example's features (F,), on the CPU; computed if they are new."""
    known = learner.features
    new = {id(example): example for example in examples if (encoder, side, id(example)) not in known}
    for example, features in new_features(learner, list(new.values()), encoder, side):
        # Holding the example keeps its id unique.
        known[encoder, side, id(example)] = (example, features.float().cpu())
    return [known[encoder, side, id(example)][1] for example in examples]


@torch.no_grad()
def new_features(
    learner: PeftLearner, examples: Sequence[Example], encoder: str, side: Side
) -> Iterator[tuple[Example, Tensor]]:
    """The examples with their features (F,), those with inputs of the same shapes one after another."""
    size, prepare, encode = (
        of_base_model(learner, side)
        if encoder == encoders.BASE_MODEL
        else of_clip(encoder, str(learner.device), side)
    )
    groups: dict[Hashable, list[tuple[Example, Any]]] = {}
    for example in examples:
        if side == "image" and example.image is None:
            yield example, torch.zeros(size)
        else:
            shapes, inputs = prepare(example)
            groups.setdefault(shapes, []).append((example, inputs))
    for group in groups.values():
        for first in range(0, len(group), BATCH):
            batch = group[first : first + BATCH]
            features = encode([inputs for _, inputs in batch])
            yield from zip([example for example, _ in batch], features, strict=True)


def of_base_model(learner: PeftLearner, side: Side) -> tuple[int, Prepare, Encode]:
    """Size of the untouched base model's features, and how they are made."""

    def prepare(example: Example) -> tuple[Hashable, Encoded]:
        encoded = learner.encode.question(example) if side == "question" else learner.encode(example)
        shapes = [(name, tensor.shape) for name, tensor in sorted(encoded.image_inputs.items())]
        return (len(encoded.prompt), *shapes), encoded

    size = learner.peft.get_base_model().config.get_text_config().hidden_size
    return size, prepare, partial(mean_state if side == "question" else mean_image_token, learner)


def mean_state(learner: PeftLearner, encoded: Sequence[Encoded]) -> Tensor:
    """The mean (B, H) of the base model's last hidden states, for prompts of the same length."""
    model = learner.peft.get_base_model()
    inputs = learner.encode.collate(encoded, prompts_only=True)
    with learner.loss.at(None), evaluation_mode(learner.peft), learner.autocast():
        return model.model(**inputs, use_cache=False).last_hidden_state.float().mean(1)


def mean_image_token(learner: PeftLearner, encoded: Sequence[Encoded]) -> Tensor:
    """The mean (B, H) of the base model's image tokens, for prompts of the same length with images."""
    ids, embedded = input_embeddings(learner, encoded)
    is_image = ids == learner.peft.get_base_model().config.image_token_id
    return torch.stack([row[own].mean(0) for row, own in zip(embedded, is_image, strict=True)])


def input_embeddings(learner: PeftLearner, encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Ids (B, S) of prompts of one length, and the untouched language model's input (B, S, H), in fp32."""
    model = learner.peft.get_base_model()
    inputs = learner.encode.collate(encoded, prompts_only=True)
    with learner.loss.at(None), evaluation_mode(learner.peft), learner.autocast():
        embedded = model.model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[0]
    return inputs["input_ids"], embedded.float()


def of_clip(encoder: str, device: str, side: Side) -> tuple[int, Prepare, Encode]:
    """Size of a CLIP model's features, and how they are made."""
    model, processor = load_clip(encoder, device)

    def prepare(example: Example) -> tuple[Hashable, dict[str, Tensor]]:
        if side == "image":
            inputs = processor(images=load_image(example), return_tensors="pt")
        else:
            inputs = processor(text=[example.question], return_tensors="pt", truncation=True)
        return tuple(tensor.shape for tensor in inputs.values()), dict(inputs)

    def encode(batch: list[dict[str, Tensor]]) -> Tensor:
        inputs = {name: torch.cat([one[name] for one in batch]).to(model.device) for name in batch[0]}
        output = model.get_image_features(**inputs) if side == "image" else model.get_text_features(**inputs)
        # Newer versions of transformers wrap the vectors in an output object.
        return output if isinstance(output, Tensor) else output.pooler_output

    return model.config.projection_dim, prepare, encode


@lru_cache(maxsize=1)
def load_clip(encoder: str, device: str) -> tuple[Any, Any]:
    """A CLIP model in evaluation mode, and its processor."""
    from transformers import CLIPModel, CLIPProcessor

    name, options = encoders.source(encoder)
    model: Any = CLIPModel.from_pretrained(name, use_safetensors=True, **options)
    model = model.to(device).eval().requires_grad_(False)
    return model, CLIPProcessor.from_pretrained(name, **options)
