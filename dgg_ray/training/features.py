"""Features of images and questions from a frozen encoder, for strategies that tell tasks apart.

    model          the untouched base model: the mean of its projected image tokens (hidden size H), and the
                   mean of its last hidden states over the question alone (H)
    a CLIP model   (storage/encoders.py) the projected image embedding and the projected text embedding

Every example is encoded by itself, so that its features depend neither on the batch nor on the number of
processes. An encoder's features of an example are computed once in a worker's life.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from dgg_ray.core.interfaces import Example
from dgg_ray.storage import encoders
from dgg_ray.training.answer_loss import evaluation_mode
from dgg_ray.training.encoding import load_image

if TYPE_CHECKING:
    from dgg_ray.training.learner import PeftLearner

Pair = tuple[Tensor, Tensor]


def extract(learner: PeftLearner, examples: Sequence[Example], encoder: str) -> Pair:
    """Features (N, F) of the images and (N, G) of the questions, fp32, on the learner's device.

    Every process of a group calls it with the same examples; each encodes its share.
    """
    own = examples[learner.rank :: learner.world_size]
    pairs = [cached_features(learner, example, encoder) for example in own]
    if learner.world_size > 1:
        of_ranks: list[Any] = [None] * learner.world_size
        dist.all_gather_object(of_ranks, pairs)
        pairs = [of_ranks[i % learner.world_size][i // learner.world_size] for i in range(len(examples))]
    images, texts = zip(*pairs, strict=True)
    return torch.stack(images).to(learner.device), torch.stack(texts).to(learner.device)


def cached_features(learner: PeftLearner, example: Example, encoder: str) -> Pair:
    """The example's features, on the CPU; computed if they are new."""
    key = (encoder, id(example))
    if key not in learner.features:
        with torch.no_grad():
            encode = model_features if encoder == encoders.BASE_MODEL else clip_features
            image, text = encode(learner, example, encoder)
        # Holding the example keeps its id unique.
        learner.features[key] = (example, (image.float().cpu(), text.float().cpu()))
    return learner.features[key][1]


def model_features(learner: PeftLearner, example: Example, encoder: str) -> Pair:
    """Features of the untouched base model."""
    model = learner.peft.get_base_model()
    with learner.loss.at(None), evaluation_mode(learner.peft), learner.autocast():
        question = learner.encode.collate([learner.encode(replace(example, image=None))], prompts_only=True)
        text = model.model(**question, use_cache=False).last_hidden_state[0].float().mean(0)
        if example.image is None:
            return torch.zeros_like(text), text
    ids, embedded = input_embeddings(learner, example)
    return embedded[ids == model.config.image_token_id].mean(0), text


def input_embeddings(learner: PeftLearner, example: Example) -> Pair:
    """Ids (S,) of the prompt's tokens and what the untouched language model gets for them (S, H), in fp32."""
    model = learner.peft.get_base_model()
    inputs = learner.encode.collate([learner.encode(example)], prompts_only=True)
    with learner.loss.at(None), evaluation_mode(learner.peft), learner.autocast():
        embedded = model.model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[0][0]
    return inputs["input_ids"][0], embedded.float()


def clip_features(learner: PeftLearner, example: Example, encoder: str) -> Pair:
    """Projected embeddings of a CLIP model's two towers."""
    model, processor = load_clip(encoder, str(learner.device))
    tokens = processor(text=[example.question], return_tensors="pt", padding=True, truncation=True)
    text = embedding_of(model.get_text_features(**tokens.to(model.device)))
    if example.image is None:
        return text.new_zeros(model.config.projection_dim), text
    pixels = processor(images=load_image(example), return_tensors="pt").to(model.device)
    return embedding_of(model.get_image_features(**pixels)), text


def embedding_of(output: Any) -> Tensor:
    """The vector of one input; newer versions of transformers wrap it in an output object."""
    return (output if isinstance(output, Tensor) else output.pooler_output)[0]


@lru_cache(maxsize=1)
def load_clip(encoder: str, device: str) -> tuple[Any, Any]:
    """A CLIP model in evaluation mode, and its processor."""
    from transformers import CLIPModel, CLIPProcessor

    name, options = encoders.source(encoder)
    model: Any = CLIPModel.from_pretrained(name, use_safetensors=True, **options)
    model = model.to(device).eval().requires_grad_(False)
    return model, CLIPProcessor.from_pretrained(name, **options)
