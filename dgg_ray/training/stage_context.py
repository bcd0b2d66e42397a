"""The loop's answers to a strategy's hooks, with the learner and the store (see `StageContext`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from dgg_ray.core.errors import StageError
from dgg_ray.core.interfaces import ADAPTER_FILE, LAYOUT_FILE, Example, LossOutputs, Task
from dgg_ray.core.stage import Stage
from dgg_ray.core.strategy import Fact, Needs, StageContext, Values
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training import facts, features, hook_checks
from dgg_ray.training.answer_loss import HookedBatch, evaluation_mode
from dgg_ray.training.encoding import Encoded
from dgg_ray.training.learner import PeftLearner, stored_name


class LearnerContext(StageContext):
    """The context of one stage, in training or at its evaluation.

    folders: of the earlier stages and, at an evaluation, of the stage itself, by their task.
    """

    def __init__(
        self,
        learner: PeftLearner,
        stage: Stage,
        tasks: Mapping[str, Task],
        store: StageStore,
        on_rank0: Callable[..., Any],
        folders: Mapping[str, Path],
        steps: int = 0,
    ) -> None:
        self.learner, self.stage, self.tasks, self.store = learner, stage, tasks, store
        self.on_rank0, self.folders, self.steps = on_rank0, folders, steps
        self.needs: Needs = stage.strategy.needs
        self.task, self.earlier, self.seed = stage.task, stage.earlier, stage.seed
        self.layout, self.names = learner.layout, learner.names

    def examples(self, task: str) -> Sequence[Example]:
        if task not in self.stage.trained_tasks and not self.needs.old_data:
            raise StageError(
                f"strategy {type(self.stage.strategy).__name__} asks for examples of {task}, which is "
                f"trained no more; declare it: needs = Needs(old_data=True)"
            )
        return self.tasks[task].examples["train"]

    def weights_after(self, task: str) -> list[Tensor]:
        adapter = self._folder(task) / "adapter"
        stored = load_file(adapter / ADAPTER_FILE)
        if (own := adapter / LAYOUT_FILE).exists():
            stored |= load_file(own)
        return [
            stored[stored_name(name) if stored_name(name) in stored else name].to(self.learner.device)
            for name in self.names
        ]

    def fact(self, fact: Fact, task: str) -> Values:
        stage = self._stage_of(task)
        name = facts.object_name(fact, stage)
        values = facts.read(self.store, name)
        # Rank 0 decides, because computing takes all ranks.
        if not self.on_rank0(lambda: values is not None):
            values = self._compute(fact, task)
            self.on_rank0(facts.publish, self.store, name, values)
        if values is None:
            raise RuntimeError(f"rank 0 can read {name}, this worker cannot")
        device = self.learner.device
        return {
            key: value.to(device) if isinstance(value, Tensor) else [t.to(device) for t in value]
            for key, value in values.items()
        }

    def parameters(self) -> list[Tensor]:
        return [p.detach() for p in self._whole_weights()]

    def shard(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        hook_checks.check_whole(tensors, self._engine.parameters)
        return self._engine.shard(tensors)

    def gradient(self, examples: Sequence[Example], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        encoded = [self.learner.encode(example) for example in examples]
        tokens = sum(len(e.answer) for e in encoded)
        total = [torch.zeros_like(p) for p in self._whole_weights()]
        size = self.learner.training.micro_batch_size or max(1, len(encoded))
        own = encoded[self.learner.rank :: self.learner.world_size]
        with nullcontext() if weights is None else self.at(weights):
            for first in range(0, len(own), size):
                torch._foreach_add_(total, self._gradient(own[first : first + size], 1 / tokens))
        return self._sum_over_ranks(total)

    def mean_squared_gradient(self, examples: Sequence[Example]) -> list[Tensor]:
        return self._mean_over(examples, lambda total, one: torch._foreach_addcmul_(total, one, one))

    def mean_of_gradients(
        self,
        examples: Sequence[Example],
        each: Callable[[Tensor], Tensor],
        of: Callable[[LossOutputs], Tensor] | None = None,
    ) -> list[Tensor]:
        def add(total: list[Tensor], one: list[Tensor]) -> None:
            torch._foreach_add_(total, [each(gradient) for gradient in one])

        return self._mean_over(examples, add, of)

    def losses(self, examples: Sequence[Example]) -> Tensor:
        losses = []
        with self._with_hook(None), evaluation_mode(self.learner.peft):
            for example in examples:
                encoded = self.learner.encode(example)
                losses.append(self.learner.loss(**self.learner.inputs_of([encoded])) / len(encoded.answer))
        return torch.stack(losses)

    def at(self, weights: Sequence[Tensor] | None) -> AbstractContextManager[None]:
        if weights is not None:
            self._whole_weights()
        return self.learner.loss.at(weights)

    def question_logits(
        self, examples: Sequence[Example], weights: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        learner = self.learner
        if weights is not None:
            with torch.no_grad(), self.at(weights), evaluation_mode(learner.peft):
                return self.question_logits(examples)
        encoded = [learner.encode.question(example) for example in examples]
        inputs = learner.encode.collate(encoded, prompts_only=True)
        is_token = inputs["attention_mask"].bool()
        with learner.autocast():
            logits = learner.peft.get_base_model()(**inputs, use_cache=False).logits
        return logits[is_token], is_token.nonzero()[:, 0]

    def input_products(self, examples: Sequence[Example], layers: Sequence[str]) -> list[Tensor]:
        self._whole_weights()
        learner, modules = self.learner, [self.learner.peft.get_submodule(layer) for layer in layers]
        sums: dict[nn.Module, Tensor] = {}
        tokens = torch.zeros((), device=learner.device)

        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].float().flatten(0, -2)
            sums[module] = sums.get(module, 0) + x.T @ x

        hooks = [module.register_forward_pre_hook(add) for module in modules]
        try:
            with torch.no_grad(), evaluation_mode(learner.peft), learner.autocast():
                for example in examples[learner.rank :: learner.world_size]:  # one at a time: no padding
                    inputs = learner.inputs_of([learner.encode(example)])
                    tokens += inputs.pop("labels").numel()
                    learner.peft.get_base_model().model(**inputs, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        for module in modules:  # a process may have no example
            if module not in sums:
                sums[module] = torch.zeros(module.in_features, module.in_features, device=learner.device)
        *products, count = self._sum_over_ranks([*(sums[module] for module in modules), tokens])
        return [product / count for product in products]

    def embedding_products(self, examples: Sequence[Example]) -> Tensor:
        learner = self.learner
        size = learner.peft.get_base_model().get_input_embeddings().weight.shape[1]
        products, tokens = (
            torch.zeros(size, size, device=learner.device),
            torch.zeros((), device=learner.device),
        )
        with torch.no_grad():
            for example in examples[learner.rank :: learner.world_size]:
                x = features.input_embeddings(learner, [learner.encode(example)])[1][0]  # (n, H)
                products += x.T @ x
                tokens += len(x)
        products, tokens = self._sum_over_ranks([products, tokens])
        return products / tokens

    def image_features(self, examples: Sequence[Example], encoder: str) -> Tensor:
        return features.extract(self.learner, examples, encoder, "image")

    def question_features(self, examples: Sequence[Example], encoder: str) -> Tensor:
        return features.extract(self.learner, examples, encoder, "question")

    # -- parts -------------------------------------------------------------------------------------

    @property
    def _engine(self) -> Any:
        assert self.learner.engine
        return self.learner.engine

    def _whole_weights(self) -> list[nn.Parameter]:
        """The trained weights; StageError on ZeRO-3, where no process holds them whole."""
        if self.learner.zero == 3:
            raise StageError(
                f"strategy {type(self.stage.strategy).__name__} asks for what needs whole weights, which "
                f"ZeRO-3 does not keep; declare it: needs = Needs(engines=WHOLE_WEIGHTS)"
            )
        return self._engine.parameters

    def _folder(self, task: str) -> Path:
        if task in self.folders:
            return self.folders[task]
        raise StageError(
            f"strategy {type(self.stage.strategy).__name__} asks for the weights after {task}; "
            f"declare it: needs = Needs(earlier_stages=True)"
        )

    def _stage_of(self, task: str) -> Stage:
        stage: Stage | None = self.stage
        while stage is not None and stage.task != task:
            stage = stage.parent
        if stage is None:
            raise StageError(f"{task} is no task of this sequence up to {self.task}")
        return stage

    def _compute(self, fact: Fact, task: str) -> Values:
        """Compute a fact at the state that it is about; every rank calls it."""
        weights = None if fact.of == "data" else self.weights_after(task)
        with torch.no_grad(), evaluation_mode(self.learner.peft), self.at(weights):
            values = fact.compute(self, self.tasks[task])
        hook_checks.check_values(fact, "compute", values)
        return values

    def _mean_over(
        self,
        examples: Sequence[Example],
        add: Callable[[list[Tensor], list[Tensor]], object],
        of: Callable[[LossOutputs], Tensor] | None = None,
    ) -> list[Tensor]:
        """The mean over all ranks' examples of what `add` adds to a sum for each example's gradient."""
        total = [torch.zeros_like(p) for p in self._whole_weights()]
        for one in self._own_gradients(examples, of):
            add(total, one)
        total = self._sum_over_ranks(total)
        torch._foreach_div_(total, len(examples))
        return total

    def _own_gradients(
        self, examples: Sequence[Example], of: Callable[[LossOutputs], Tensor] | None = None
    ) -> Iterator[list[Tensor]]:
        """The gradient of each example of this process: of its mean loss per answer token, or of `of`."""
        for example in examples[self.learner.rank :: self.learner.world_size]:
            encoded = self.learner.encode(example)
            if of is None:
                yield self._gradient([encoded], 1 / len(encoded.answer))
            else:
                hook = hook_checks.function_of_outputs(of)
                yield self._gradient([encoded], 1.0, HookedBatch(hook, [example], len(encoded.answer)))

    def _gradient(
        self, encoded: Sequence[Encoded], scale: float, hooked: HookedBatch | None = None
    ) -> list[Tensor]:
        """Gradient of the summed loss times `scale`, of these examples on this process alone.

        hooked: whose hook gives what the gradient is of, in place of the loss.
        """
        learner, parameters = self.learner, self._engine.parameters
        inputs = learner.inputs_of(encoded)
        with self._with_hook(hooked), torch.enable_grad(), evaluation_mode(learner.peft):
            loss = learner.loss(**inputs) * scale
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    @contextmanager
    def _with_hook(self, hooked: HookedBatch | None) -> Iterator[None]:
        """In the block, this hook edits the loss; None stands for the model's own loss."""
        loss = self.learner.loss
        present, loss.hooked = loss.hooked, hooked
        try:
            yield
        finally:
            loss.hooked = present

    def _sum_over_ranks(self, tensors: list[Tensor]) -> list[Tensor]:
        if self.learner.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
        return tensors
