"""Which task an example is nearest to, by frozen features of its image and its question.

    k = argmax_k  cos(image, i_k) + cos(question, q_k)

    symbol  here            shape       unit
    i_k     image           (F,)        mean of the unit vectors of the task's image features
    q_k     text            (G,)        the same of its questions

This mean is the direction that minimises Σ (1 - cos(feature, key)) over the task's examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from dgg_ray.core import rng
from dgg_ray.core.strategy import Fact, ReplayStrategy, setting_for_key

if TYPE_CHECKING:
    from torch import Tensor

    from dgg_ray.core.interfaces import Example


@dataclass(frozen=True)
class TaskKeys(Fact):
    """Mean directions of a task's features: {image: (F,), text: (G,)}, fp32.

    encoder: see `StageContext.features`.
    samples: number of training examples, drawn without replacement; all where the task has fewer.
    """

    of = "data"

    encoder: str
    samples: int

    def compute(self, context, task):
        from torch.nn.functional import normalize

        train = task.examples["train"]
        drawn = rng.permutation(len(train), 0, task.name, "task keys")[: self.samples]
        images, texts = context.features([train[i] for i in drawn], self.encoder)
        return {"image": normalize(images, dim=1).mean(0), "text": normalize(texts, dim=1).mean(0)}


@dataclass(frozen=True)
class NearestTask(ReplayStrategy):
    """Base class of strategies that find an example's task by its features.

    encoder: whose features tell tasks apart: `model` is the untouched base model; else a folder or hub id of
        a CLIP model.
    key_examples: number of training examples behind a task's keys; all where it has fewer.
    """

    encoder: str = "model"
    key_examples: Annotated[int, Ge(1)] = 1000

    def keys_effect(self) -> dict[str, Any]:
        """Return what an effect says of the keys."""
        return {"encoder": encoder_effect(self.encoder), "key_examples": self.key_examples}

    def nearest_task(self, examples: Sequence[Example]) -> Tensor:
        """Return one row (K,) for each example, 1 at its nearest task and else 0; the newest task is last."""
        import torch
        from torch.nn.functional import cosine_similarity, one_hot

        context = self.context
        keys = [context.fact(TaskKeys(self.encoder, self.key_examples), task) for task in self.tasks]
        images, texts = context.features(examples, self.encoder)
        of_image = cosine_similarity(images[:, None], torch.stack([key["image"] for key in keys]), dim=2)
        of_text = cosine_similarity(texts[:, None], torch.stack([key["text"] for key in keys]), dim=2)
        return one_hot((of_image + of_text).argmax(1), len(keys)).float()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks so far, the present one last."""
        return (*self.context.earlier, self.context.task)


def encoder_effect(encoder: str) -> str:
    """What an effect says of an encoder; a folder counts by its content."""
    return encoder if encoder == "model" else setting_for_key(Path(encoder))
