"""Which task an example looks like: the cosine between its features and the tasks' prototypes.

    u_k = mean of the image features, v_k = mean of the question features, over N training examples of task k
    c_k(x) = cos(image(x), u_k),   d_k(x) = cos(question(x), v_k)

    symbol      here        shape
    u_k, v_k    Prototypes  (F,), (G,)
    c, d        cosines     (N, K) each, for the K tasks trained so far, the newest last

Prototypes depend on the data and on the frozen encoder alone, so that all settings share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt

from dgg_ray.core import rng
from dgg_ray.core.strategy import Fact, ReplayStrategy, setting_for_key
from dgg_ray.storage import encoders

if TYPE_CHECKING:
    from torch import Tensor

    from dgg_ray.core.interfaces import Example


@dataclass(frozen=True)
class Prototypes(Fact):
    """Mean features of a task's training examples, fp32: {image: (F,), text: (G,)}.

    encoder: of the features; a folder counts by its content.
    samples: number of training examples, drawn without replacement; all where the task has fewer.
    """

    of = "data"

    encoder: str | Path
    samples: int

    def compute(self, context, task):
        train = task.examples["train"]
        drawn = rng.permutation(len(train), 0, task.name, "prototypes")[: self.samples]
        images, texts = context.features([train[i] for i in drawn], str(self.encoder))
        return {"image": images.mean(0), "text": texts.mean(0)}


@dataclass(frozen=True)
class PrototypeStrategy(ReplayStrategy):
    """Base class of strategies that tell tasks apart by prototypes.

    encoder: whose features tell tasks apart. `model` is the untouched base model; else it is a folder with a
        CLIP model, or a hub name with its commit, NAME@COMMIT.
    prototype_examples: number of training examples behind a task's prototypes; all where it has fewer.
    temperature: τ, by which similarities are divided before the softmax over tasks.
    """

    encoder: str = "model"
    prototype_examples: Annotated[int, Ge(1)] = 1000
    temperature: Annotated[float, Gt(0)] = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", encoders.absolute(self.encoder))

    def faults(self) -> list[tuple[str, str, str]]:
        return [("encoder", rule, found) for rule, found in encoders.faults(self.encoder)]

    def prototype_effect(self) -> dict[str, Any]:
        """Return what an effect says of the prototypes."""
        encoder = setting_for_key(encoders.as_setting(self.encoder))
        return {"encoder": encoder, "examples": self.prototype_examples}

    def prepare(self) -> None:
        context = self.context
        if context.steps:  # a stage trains its own slot alone
            return
        import torch

        fact = Prototypes(encoders.as_setting(self.encoder), self.prototype_examples)
        found = [context.fact(fact, task) for task in (*context.earlier, context.task)]
        self.cache.update({side: torch.stack([f[side] for f in found]) for side in ("image", "text")})

    def cosines(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Return (N, K) cosines of the images, and of the questions, with the tasks' prototypes.

        The cosine of an image that is missing, or of a task without images, is 0.
        """
        from torch.nn.functional import cosine_similarity

        images, texts = self.context.features(examples, self.encoder)
        image = cosine_similarity(images[:, None], self.cache["image"][None], dim=2)
        return image, cosine_similarity(texts[:, None], self.cache["text"][None], dim=2)
