"""A reading of BranchLoRA: one shared A, many branches B, and a router for each task.

    y = W x + s · Σ_{i in top k} w_i B_i A x                    (adapters/lora_branches)
    after a task: the k most used branches of each layer are frozen
    at evaluation: the router of the task whose keys are most similar to the example's features

    symbol  here                                shape
    k       top_branches                        scalar
    used    watching, summed over examples      (N,) for each layer, the branches' weights w

[1] Zhang et al., ACL 2025, arXiv:2506.02041

What was read: the abstract, and notes of others that could not be checked. From them are the shared A, the
sparse choice of 2 among 8 branches, freezing, routers of tasks and keys to choose one. Chosen by us:

- The prompt routes: the mean of the layer's inputs over its tokens. The notes name the first token, which
  under causal attention says nothing about the example.
- The weights of the chosen branches add up to 1.
- Each layer has its own routers and freezes its own branches. Frozen ones can still be chosen. The last k
  branches of a layer are never frozen, so that any number of tasks can follow.
- A is trained in every task, as in LoRA.
- Keys are means of unit features of a frozen encoder, where the alignment loss of the notes,
  Σ (1 - cos(feature, key)), is smallest. So no loss is needed to learn them.
- The study's rank is that of all branches together. With rank 128, 8 branches, all linear layers of a 7B
  model and its projector this trains 222 M numbers, which is what the notes say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from dgg_ray.adapters.lora_branches import LoraBranches
from dgg_ray.core import rng
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Needs
from dgg_ray.strategies._prototypes import PrototypeStrategy


@dataclass(frozen=True)
class BranchLoRA(PrototypeStrategy):
    """Train branches that share one A; freeze the most used ones after each task.

    branches: N, the number of branches, which share the rank of the study equally.
    top_branches: k, how many branches an example uses in a layer, and how many a task freezes.
    watched_examples: number of training examples over which the use of branches is summed.
    """

    needs = Needs(engines=WHOLE_WEIGHTS)
    unit_features = True
    known_from = "abstract"

    branches: Annotated[int, Ge(1)] = 8
    top_branches: Annotated[int, Ge(1)] = 2
    watched_examples: Annotated[int, Ge(1)] = 200

    def layout(self):
        return LoraBranches(self.branches, self.top_branches)

    def effect(self, task, earlier):
        settings = {"watched": self.watched_examples, **self.prototype_effect()}
        return {**self.replay_effect(earlier), "branch_lora": settings}

    def end_task(self, weights):
        context, layout = self.context, self.context.layout
        assert isinstance(layout, LoraBranches)
        train = context.examples(context.task)
        drawn = rng.permutation(len(train), context.seed, context.task, "branches")[: self.watched_examples]
        with layout.watching() as usage:
            context.losses([train[i] for i in drawn])
        layout.freeze(usage)

    def route(self, examples):
        return self._nearest_task(examples)
