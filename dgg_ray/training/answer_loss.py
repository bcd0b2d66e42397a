"""The loss on answer tokens, and what a strategy's loss hook sees of the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgg_ray.core.interfaces import AdapterLayout, Example, LossOutputs
from dgg_ray.training.encoding import IGNORE

LossHook = Callable[[Tensor, LossOutputs], Tensor]


@dataclass(frozen=True, eq=False)
class HookedBatch:
    """A micro-batch whose loss a strategy edits; see `LossOutputs` for the fields."""

    hook: LossHook
    examples: Sequence[Example]
    tokens_per_example: float


class AnswerLoss(nn.Module):
    """Summed negative log-likelihood of the answer tokens, in nats, as a strategy's loss hook leaves it.

    plain_head: run the output head only on the answers' positions, a few among hundreds.
    autocast: entered inside the module, because DeepSpeed disables an autocast around it.
    layout, trained: of the adapter, to look at other weights than the present ones.
    """

    hooked: HookedBatch | None = None  # the micro-batch of the next forward pass, if there is a hook

    def __init__(
        self,
        peft: nn.Module,
        plain_head: bool,
        autocast: Callable[[], Any],
        layout: AdapterLayout,
        trained: Sequence[nn.Parameter],
    ) -> None:
        super().__init__()
        self.peft, self.plain_head, self.autocast = peft, plain_head, autocast
        self.layout, self.trained = layout, list(trained)

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        logits, targets = self.answer_logits(labels, inputs)
        loss = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        if self.hooked is None:
            return loss
        outputs = LossOutputs(
            logits,
            targets,
            (labels[:, 1:] != IGNORE).nonzero()[:, 0],
            self.hooked.examples,
            self.hooked.tokens_per_example,
            lambda weights: self.logits_at(weights, labels, inputs),
        )
        return self.hooked.hook(loss, outputs)

    def answer_logits(self, labels: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits before each answer token (n, V), and these tokens (n,)."""
        model = self.peft.get_base_model()  # type: ignore[operator]
        is_answer = labels[:, 1:] != IGNORE  # position s predicts token s + 1
        with self.autocast():
            if self.plain_head:
                hidden = model.model(**inputs, use_cache=False).last_hidden_state  # (B, S, H)
                logits = model.lm_head(hidden[:, :-1][is_answer])  # (n, V)
            else:
                logits = model(**inputs, use_cache=False).logits[:, :-1][is_answer]
        return logits, labels[:, 1:][is_answer]

    def logits_at(
        self, weights: Sequence[Tensor] | None, labels: Tensor, inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """Logits of the same inputs at other whole weights, in evaluation mode, without a gradient."""
        with torch.no_grad(), self.at(weights), evaluation_mode(self.peft):
            return self.answer_logits(labels, inputs)[0]

    @contextmanager
    def at(self, weights: Sequence[Tensor] | None) -> Iterator[None]:
        """In the block, the model has these whole weights, or its base weights alone for None."""
        if weights is None:
            self.layout.switch(False)
            try:
                with self.peft.disable_adapter():  # type: ignore[operator]
                    yield
            finally:
                self.layout.switch(True)
            return
        present = [p.data for p in self.trained]
        for p, other in zip(self.trained, weights, strict=True):
            p.data = other.to(p.device, p.dtype)
        try:
            yield
        finally:
            for p, own in zip(self.trained, present, strict=True):
                p.data = own


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """In the block, nothing is dropped out."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
