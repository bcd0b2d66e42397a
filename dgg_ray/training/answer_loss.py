"""The loss on answer tokens, and what a strategy's loss hook sees of the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Call(NamedTuple):
    """The arguments of a module's forward pass."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    def repeat(self, module: nn.Module) -> Any:
        return module(*self.positional, **self.named)


class AnswerLoss(nn.Module):
    """Summed negative log-likelihood of the answer tokens, in nats, as a strategy's loss hook leaves it.

    plain_head: run the output head only on the answers' positions, a few among hundreds.
    autocast: entered inside the module, because DeepSpeed disables an autocast around it.
    layout, trained: of the adapter, to look at other weights than the present ones.
    shared_input: whether the language model gets the same input at all weights, so that a look at other
        weights repeats neither vision tower nor projector.
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
        self.shared_input = plain_head and is_behind_frozen_parts(peft, self.trained)

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        seen: list[Call] = []
        with recorded(self._decoder, seen) if self.hooked and self.shared_input else nullcontext():
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
            lambda weights: self.logits_at(weights, labels, inputs, *seen),
        )
        return self.hooked.hook(loss, outputs)

    @property
    def _decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.peft.get_base_model().get_decoder()  # type: ignore[operator]

    def answer_logits(
        self, labels: Tensor, inputs: Mapping[str, Tensor], seen: Call | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits before each answer token (n, V), and these tokens (n,).

        seen: how the language model is called for these inputs, where that is known.
        """
        model = self.peft.get_base_model()  # type: ignore[operator]
        is_answer = labels[:, 1:] != IGNORE  # position s predicts token s + 1
        with self.autocast():
            if self.plain_head:
                output = seen.repeat(self._decoder) if seen else model.model(**inputs, use_cache=False)
                logits = model.lm_head(output.last_hidden_state[:, :-1][is_answer])  # (n, V)
            else:
                logits = model(**inputs, use_cache=False).logits[:, :-1][is_answer]
        return logits, labels[:, 1:][is_answer]

    def logits_at(
        self,
        weights: Sequence[Tensor] | None,
        labels: Tensor,
        inputs: Mapping[str, Tensor],
        seen: Call | None = None,
    ) -> Tensor:
        """Logits of the same inputs at other whole weights, in evaluation mode, without a gradient."""
        with torch.no_grad(), self.at(weights), evaluation_mode(self.peft):
            return self.answer_logits(labels, inputs, seen)[0]

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
    training = [part for part in module.modules() if part.training]  # cheaper than two calls of `train`
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def is_behind_frozen_parts(peft: Any, trained: Sequence[nn.Parameter]) -> bool:
    """Return whether all that is trained lies in the language model, behind its embeddings.

    What comes before has no dropout either, so that training and evaluation see the same.
    """
    model = peft.get_base_model()
    decoder = model.get_decoder()
    inside = {id(p) for p in decoder.parameters()} - {
        id(p) for p in model.get_input_embeddings().parameters()
    }
    settings = model.config.to_dict()
    settings.pop("text_config", None)
    return all(id(p) in inside for p in trained) and not has_dropout(settings)


def has_dropout(settings: Mapping[str, Any]) -> bool:
    """Return whether a model's config sets any kind of dropout.

    >>> has_dropout({"vision_config": {"attention_dropout": 0.1}})
    True
    """
    return any(
        has_dropout(value) if isinstance(value, Mapping) else "drop" in str(name) and bool(value)
        for name, value in settings.items()
    )


@contextmanager
def recorded(module: nn.Module, calls: list[Call]) -> Iterator[None]:
    """In the block, append the calls of a module."""

    def note(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(Call(positional, named))

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
