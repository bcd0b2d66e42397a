"""ModalPrompt: one set of prompt vectors per task, found again by the similarity of image and question.

    g_k(x) = (cos(image, p_k) + cos(question, p_k)) / 2            guidance of set k for an example
    training    insert the newest set and the K - 1 earlier ones with the largest g
    evaluation  insert the K sets with the largest g; the largest stands nearest to the input
    L(θ)   = CE + λ · mean over examples of (1 - cos(image, p_t)) + (1 - cos(question, p_t))

    symbol  here                shape
    p_k     prototypes          (F,), of the set's rows (adapters/prompt.py)
    g       route               (N, number of tasks so far)
    K       sets                scalar
    λ       alignment           scalar, in nats

The language model stays as it is: a set of rows, and the head that makes its prototype, are trained.

[1] Zeng et al., EMNLP 2025, arXiv:2410.05849

Where we differ from [1]'s code: features, choice of sets and loss are each example's own, not the batch's.
The rows are parameters beside the embedding matrix, whose rows [1] trains in place. Rows and head have the
learning rate of the study's LoRA; [1]'s code gives them the projector's. Ports insert one set (`sets: 1`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from dgg_ray.adapters.prompt import Prompt
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Needs, Strategy, setting_for_key
from dgg_ray.storage import encoders


@dataclass(frozen=True)
class ModalPrompt(Strategy):
    """Train a set of prompt vectors for each task, and insert those that fit an example.

    encoder: whose features find the sets. `model` is the untouched base model; else it is a folder with a
        CLIP model.
    prompt_tokens: number of vectors of a set.
    sets: K, how many sets are inserted at most.
    alignment: λ, the weight of the similarity between the newest set's prototype and the task's examples.
    """

    needs = Needs(engines=WHOLE_WEIGHTS)
    known_from = "released code"

    encoder: str = "model"
    prompt_tokens: Annotated[int, Ge(1)] = 10
    sets: Annotated[int, Ge(1)] = 3
    alignment: Annotated[float, Ge(0)] = 1.0

    def __post_init__(self):
        object.__setattr__(self, "encoder", encoders.absolute(self.encoder))

    def faults(self):
        found = encoders.faults(self.encoder)
        if not found and encoders.feature_size(self.encoder) is None:
            found = [("must be `model` or a folder: the size of its features must be known", self.encoder)]
        return [("encoder", rule, value) for rule, value in found]

    def layout(self):
        size = encoders.feature_size(self.encoder)
        return Prompt(self.prompt_tokens, self.sets, prototype_size=size or 0)

    def effect(self, task, earlier):
        encoder = setting_for_key(encoders.as_setting(self.encoder))
        return {"modal_prompt": {"encoder": encoder, "alignment": self.alignment}}

    def prepare(self):
        # Afterwards each process sees its own part of a batch, and cannot encode together with others.
        if self.context.steps:
            examples = self.context.examples(self.context.task)
            images, texts = self.context.features(examples, self.encoder)
            self.cache["features"] = {id(e): pair for e, *pair in zip(examples, images, texts, strict=True)}

    def route(self, examples):
        image, text = self._cosines(examples, self._prototypes().detach())
        return (image + text) / 2

    def training_route(self, examples):
        guidance = self.route(examples)
        guidance[:, -1] = 2  # the task's own set, above every cosine
        return guidance

    def edit_loss(self, loss, outputs):
        image, text = self._cosines(outputs.examples, self._prototypes()[-1:])
        unlike = (2 - image - text).sum()
        return loss + self.alignment * outputs.tokens_per_example * unlike

    def _prototypes(self):
        layout: Any = self.context.layout  # a Prompt
        return layout.prototypes()

    def _cosines(self, examples, prototypes):
        """Cosines (N, K) of the examples' images, and of their questions, with the prototypes."""
        import torch  # here, so that planning with a strategy does not load torch
        from torch.nn.functional import cosine_similarity

        if known := self.cache.get("features"):
            sides = [torch.stack(side) for side in zip(*(known[id(e)] for e in examples), strict=True)]
        else:
            sides = self.context.features(examples, self.encoder)
        return [cosine_similarity(side[:, None], prototypes[None], dim=2) for side in sides]
