"""Which task an example looks like: the cosine between its features and the tasks' prototypes.

    u_k = mean of the image features, v_k = mean of the question features, over N training examples of task k
          (or of these features as unit vectors, which minimises Σ (1 - cos(feature, u_k)) over the examples)
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
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

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
    unit: whether each feature counts as a unit vector.
    """

    of = "data"

    encoder: str | Path
    samples: int
    unit: bool = False

    def compute(self, context, task):
        from torch.nn.functional import (
            normalize,  # here, so that planning with a strategy does not load torch
        )

        train = task.examples["train"]
        drawn = rng.permutation(len(train), 0, task.name, "prototypes")[: self.samples]
        images, texts = context.features([train[i] for i in drawn], str(self.encoder))
        if self.unit:
            images, texts = normalize(images, dim=1), normalize(texts, dim=1)
        return {"image": images.mean(0), "text": texts.mean(0)}


@dataclass(frozen=True)
class PrototypeStrategy(ReplayStrategy):
    """Base class of strategies that tell tasks apart by prototypes.

    encoder: whose features tell tasks apart. `model` is the untouched base model; else it is a folder with a
        CLIP model, or a hub name with its commit, NAME@COMMIT.
    prototype_examples: number of training examples behind a task's prototypes; all where it has fewer.
    """

    unit_features: ClassVar[bool] = False
    """Return whether prototypes are means of unit vectors."""

    encoder: str = "model"
    prototype_examples: Annotated[int, Ge(1)] = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", encoders.absolute(self.encoder))

    def faults(self) -> list[tuple[str, str, str]]:
        return [("encoder", rule, found) for rule, found in encoders.faults(self.encoder)]

    def prototype_effect(self) -> dict[str, Any]:
        """Return what an effect says of the prototypes."""
        encoder = setting_for_key(encoders.as_setting(self.encoder))
        return {"encoder": encoder, "examples": self.prototype_examples}

    def _prototypes(self) -> dict[str, Tensor]:
        """Return {image: (K, F), text: (K, G)}, loaded at the first use: training does without them."""
        if "prototypes" not in self.cache:
            import torch

            context = self.context
            fact = Prototypes(encoders.as_setting(self.encoder), self.prototype_examples, self.unit_features)
            found = [context.fact(fact, task) for task in (*context.earlier, context.task)]
            self.cache["prototypes"] = {
                side: torch.stack([f[side] for f in found]) for side in ("image", "text")
            }
        return self.cache["prototypes"]

    def image_cosines(self, examples: Sequence[Example]) -> Tensor:
        """Return (N, K) cosines of the images with the tasks' prototypes; 0 where either has no image."""
        return self._cosines(self.context.image_features(examples, self.encoder), "image")

    def question_cosines(self, examples: Sequence[Example]) -> Tensor:
        """Return (N, K) cosines of the questions with the tasks' prototypes."""
        return self._cosines(self.context.question_features(examples, self.encoder), "text")

    def _cosines(self, features: Tensor, side: str) -> Tensor:
        from torch.nn.functional import cosine_similarity

        return cosine_similarity(features[:, None], self._prototypes()[side][None], dim=2)

    def _nearest_task(self, examples: Sequence[Example]) -> Tensor:
        """Return one row (K,) for each example, 1 at the task with the largest c + d, else 0."""
        from torch.nn.functional import one_hot

        sums = self.image_cosines(examples) + self.question_cosines(examples)
        return one_hot(sums.argmax(1), sums.shape[1]).float()
