"""D-MoLE: each task gets LoRA experts on the layers that it needs most; an autoencoder recognises the task.

    score of a layer     ‖Σ_n ∇_W ℓ_n‖_F, at the untouched base model, over `scored_examples` of the new task
    experts              on the `share` of the layers with the largest scores; others learn nothing
    z = [image ; question] / ‖·‖,   e_k(x) = mean (z - D_k relu(E_k z))²       features of a frozen encoder
    training             y = W x + s B_t A_t x̃ + s B_k A_k x̃       k: the nearest earlier task, if recognised
    evaluation           y = W x + s B_k A_k x                      k: the nearest task, if recognised

    symbol      here                shape
    ℓ_n         losses              scalar, mean per answer token
    E_k, D_k    Recogniser          (H, F), (F, H) with biases, H = 128
    e_k         errors              (N, K)
    A_k, B_k    adapters/lora_slots (r, d_in), (d_out, r)

The nearest task has the smallest error among those below their thresholds: quantiles of the errors on the
task's own training examples. Where no task is recognised, the base model answers alone.

[1] Ge et al., ICML 2025, arXiv:2506.11672, and its released code

Where we differ: each example has its own route; [1]'s code lets a batch vote. It reads thresholds from a file
that it does not write; here a quantile is a setting. Features are means of image tokens and of hidden states,
or CLIP's, instead of maxima; they may be negative, so the decoder has no sigmoid. The autoencoder is trained
on all examples at once. Layers of the language model alone are adapted, those that `adapter.targets` names
([1]: attention), so there is no budget to share with the vision tower. With no task before it, a task's
evaluation too falls back to the base model, so the first stage is not one of plain fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le

from dgg_ray.adapters.lora_module_slots import LoraModuleSlots
from dgg_ray.core import rng
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Fact, Needs, Strategy, setting_for_key
from dgg_ray.storage import encoders

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN = 128  # units of an autoencoder
RATES = (5e-3, 1e-3)  # Adam's learning rate falls from the first to the second as half a cosine
PATIENCE = 10  # epochs without a smaller error, after which training stops


@dataclass(frozen=True)
class LayerScores(Fact):
    """Norm of the summed gradient of each adapted layer's frozen weight: {scores: (L,)}.

    targets: names of the adapted layers, in the model's order.
    samples: number of training examples, drawn without replacement; all where the task has fewer.
    """

    of = "data"

    targets: tuple[str, ...]
    samples: int

    def compute(self, context, task):
        import torch

        layout = context.layout
        assert isinstance(layout, LoraModuleSlots)
        train = task.examples["train"]
        drawn = rng.permutation(len(train), 0, task.name, "layer scores")[: self.samples]
        with torch.enable_grad(), layout.weight_gradients() as sums:
            for i in drawn:
                context.losses([train[i]]).sum().backward()
        return {"scores": torch.stack([total.norm() for total in sums])}


@dataclass(frozen=True)
class Recogniser(Fact):
    """An autoencoder of a task's features, and its errors on them, in ascending order.

    encoder: see `StageContext.features`.
    samples: number of training examples, drawn without replacement; all where the task has fewer.
    epochs: largest number of training steps, each on all these examples.
    """

    of = "data"

    encoder: str | Path
    samples: int
    epochs: int

    def compute(self, context, task):
        import torch
        from torch import nn

        train = task.examples["train"]
        drawn = rng.permutation(len(train), 0, task.name, "recogniser")[: self.samples]
        z = unit_features(context, [train[i] for i in drawn], str(self.encoder)).cpu()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(rng.integer(0, task.name, "recogniser"))
            encode, decode = nn.Linear(z.shape[1], HIDDEN), nn.Linear(HIDDEN, z.shape[1])
            fit(encode, decode, z, self.epochs)
        values = {
            "encode": encode.weight.detach(),
            "encode_bias": encode.bias.detach(),
            "decode": decode.weight.detach(),
            "decode_bias": decode.bias.detach(),
        }
        return {**values, "errors": errors(values, z).sort().values}


@dataclass(frozen=True)
class DMoLE(Strategy):
    """Give each task experts on the layers with the largest gradients, and recognise the task of an example.

    share: share of the adapted layers that get an expert for each task. The rank grows as it falls, so that
        the number of trained parameters stays that of the study's LoRA.
    scored_examples: number of training examples behind the layers' scores.
    quantile: of the errors on a task's own training examples; an example with a larger error is not of it.
    encoder: whose features tell tasks apart. `model` is the untouched base model; else it is a folder with a
        CLIP model, or a hub name with its commit, NAME@COMMIT.
    recogniser_examples: number of training examples behind a task's autoencoder.
    recogniser_epochs: largest number of training steps of an autoencoder.
    """

    needs = Needs(engines=WHOLE_WEIGHTS)
    known_from = "released code"

    share: Annotated[float, Gt(0), Le(1)] = 0.5
    scored_examples: Annotated[int, Ge(1)] = 100
    quantile: Annotated[float, Ge(0), Le(1)] = 0.99
    encoder: str = "model"
    recogniser_examples: Annotated[int, Ge(2)] = 1024
    recogniser_epochs: Annotated[int, Ge(1)] = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", encoders.absolute(self.encoder))

    def faults(self):
        return [("encoder", rule, found) for rule, found in encoders.faults(self.encoder)]

    def layout(self):
        return LoraModuleSlots(in_training="routed", share=self.share)

    def effect(self, task, earlier):
        settings = {
            "scored": self.scored_examples,
            "quantile": self.quantile,
            "encoder": encoders.as_setting(self.encoder),
            "recogniser": [self.recogniser_examples, self.recogniser_epochs],
        }
        return {"d_mole": setting_for_key(settings)}

    def prepare(self):
        context = self.context
        if not context.steps:  # an evaluation
            return
        layout = context.layout
        assert isinstance(layout, LoraModuleSlots)
        names = layout.module_names
        scores = context.fact(LayerScores(tuple(names), self.scored_examples), context.task)["scores"]
        best = scores.argsort(descending=True, stable=True)[: layout.experts()].tolist()
        self.cache["chosen"] = {names[i] for i in best}
        if context.earlier:
            train = context.examples(context.task)
            routes = self.recognised(train, context.earlier)
            self.cache["routes"] = {id(e): row for e, row in zip(train, routes, strict=True)}

    def training_route(self, examples):
        import torch

        if "routes" not in self.cache:
            return None
        earlier = torch.stack([self.cache["routes"][id(e)] for e in examples])
        return torch.cat([earlier, earlier.new_ones(len(examples), 1)], 1)  # the new slot always takes part

    def edit_gradient(self, weights, gradients, step):
        for name, gradient in zip(self.context.names, gradients, strict=True):
            module, is_lora, _ = name.partition(".lora_")
            if is_lora and module not in self.cache["chosen"]:
                gradient.zero_()

    def route(self, examples):
        return self.recognised(examples, (*self.context.earlier, self.context.task))

    def recognised(self, examples: Sequence, tasks: Sequence[str]) -> Tensor:
        """Return one row (K,) for each example: 1 at the nearest task that recognises it, else 0."""
        import torch
        from torch.nn.functional import one_hot

        fact = Recogniser(encoders.as_setting(self.encoder), self.recogniser_examples, self.recogniser_epochs)
        z = unit_features(self.context, examples, self.encoder)
        found = [self.context.fact(fact, task) for task in tasks]
        of_tasks = torch.stack([errors(values, z) for values in found], 1)  # (N, K)
        thresholds = torch.stack([values["errors"].quantile(self.quantile) for values in found])
        known = of_tasks <= thresholds
        nearest = of_tasks.masked_fill(~known, torch.inf).argmin(1)
        return one_hot(nearest, len(tasks)).float() * known.any(1, keepdim=True)


def unit_features(context, examples: Sequence, encoder: str) -> Tensor:
    """Features of image and question side by side, as unit vectors (N, F)."""
    import torch
    from torch.nn.functional import normalize

    return normalize(torch.cat(context.features(examples, encoder), 1), dim=1)


def errors(values: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """Mean squared error (N,) of an autoencoder on features z (N, F)."""
    from torch.nn.functional import linear

    hidden = linear(z, values["encode"], values["encode_bias"]).relu()
    return (linear(hidden, values["decode"], values["decode_bias"]) - z).square().mean(1)


def fit(encode, decode, z: Tensor, epochs: int) -> None:
    """Train an autoencoder on features z (N, F), in place."""
    import torch

    adam = torch.optim.Adam([*encode.parameters(), *decode.parameters()], lr=RATES[0])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs, RATES[1])
    best, waited = float("inf"), 0
    for _ in range(epochs):
        loss = (decode(encode(z).relu()) - z).square().mean()
        waited = 0 if float(loss.detach()) < best else waited + 1
        best = min(best, float(loss.detach()))
        if waited == PATIENCE:
            return
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
