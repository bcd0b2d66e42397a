"""Engines, by which several processes train as one: each holds all tensors, or a shard of each.

    engine             who holds weights, optimizer state and gradient     what reduces the gradient
    plain              the only process, all of it                         -
    ddp                every process, all of it                            torch DDP
    zero1 zero2 zero3  every process, a shard (Rajbhandari et al. 2020,    DeepSpeed
                       arXiv:1910.02054); zero3 also shards the frozen
                       base model

All engines compute the same step. Gradients are summed over the *global* batch. Then a hook right before
the optimizer's update, the gradient hook, lets the strategy edit them and clips them if clipping is
configured. Then AdamW moves the weights. On every engine the hook sees fp32 values after accumulation,
reduction and unscaling. DeepSpeed's own clipping is off, because it would come before the edit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dgg_ray.core.errors import NonFiniteError
from dgg_ray.core.interfaces import ShardedTensors

StepHook = Callable[[ShardedTensors, ShardedTensors], None]  # (weights, gradients): may edit the gradients
WeightHook = Callable[[ShardedTensors], None]  # weights after the update: may edit them
ADAMW_STATE = ("exp_avg", "exp_avg_sq")  # names of AdamW's running averages in torch


def no_hook(weights: ShardedTensors, gradients: ShardedTensors) -> None:
    """The gradient hook that edits nothing."""


def no_weight_hook(weights: ShardedTensors) -> None:
    """The weight hook that edits nothing."""


class Engine(ABC):
    """Gradients, optimizer step and optimizer state, for whole or sharded tensors.

    loss: module that maps a batch's inputs to a summed loss.
    parameters: the trainable ones, in the same order in every process.
    weights: what the optimizer updates: each parameter, or this process's shard of it.
    """

    weights: ShardedTensors

    def __init__(
        self, loss: nn.Module, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        self.loss, self.parameters, self.optimizer = loss, list(parameters), optimizer
        self.gradient_hook: StepHook = no_hook
        self.weight_hook: WeightHook = no_weight_hook

    @abstractmethod
    def backward(self, inputs: Mapping[str, Tensor], scale: float, last: bool) -> Tensor:
        """Add one micro-batch's gradient; after the `last`, reduce over processes. Return loss · scale."""

    def step(self, gradient_hook: StepHook, weight_hook: WeightHook | None = None) -> None:
        """Update the weights once, with the gradients as the first hook leaves them.

        weight_hook: may change the weights after the update.
        """
        self.gradient_hook = gradient_hook
        self.weight_hook = weight_hook or no_weight_hook
        self._update()

    @abstractmethod
    def gradients(self) -> ShardedTensors:
        """The gradients, sharded like `weights`; valid only between the reduction and the update."""

    @abstractmethod
    def gather(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Whole tensors on the CPU, from shards like `weights`. Every process must call it."""

    @abstractmethod
    def shard(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of this process's shards of whole tensors: the inverse of `gather`."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, list[Tensor]]:
        """AdamW's running averages by name, sharded like `weights`; empty before the first step."""

    @abstractmethod
    def load_optimizer_state(self, state: Mapping[str, Sequence[Tensor]], steps: int) -> None:
        """Set the optimizer to the whole tensors of an `optimizer_state` after that many steps."""

    @abstractmethod
    def close(self) -> None:
        """Leave the parameters as plain, whole tensors for the next engine."""

    @abstractmethod
    def _update(self) -> None: ...

    def _register_hooks(self) -> None:
        """Run the hooks right before and right after the optimizer's own step.

        A ZeRO engine hands the updated shards to the other processes only after both.
        """
        self.optimizer.register_step_pre_hook(self._run_gradient_hook)
        self.optimizer.register_step_post_hook(self._run_weight_hook)

    def _run_gradient_hook(self, *_: Any) -> None:
        with torch.no_grad():
            self.gradient_hook(self.weights, self.gradients())

    def _run_weight_hook(self, *_: Any) -> None:
        with torch.no_grad():
            self.weight_hook(self.weights)


class ReplicatedEngine(Engine):
    """One process, or several that each hold everything (DDP)."""

    def __init__(self, loss, parameters, optimizer, world_size: int = 1) -> None:
        super().__init__(loss, parameters, optimizer)
        self.world_size = world_size
        self.weights = ShardedTensors(self.parameters)
        # With a trained projector there are two groups, and a batch without images does not use it.
        may_skip = len(optimizer.param_groups) > 1
        self.module = loss
        if world_size > 1:
            self.module = DistributedDataParallel(loss, find_unused_parameters=may_skip)
        self._register_hooks()

    def backward(self, inputs, scale, last):
        postpone_reduction = isinstance(self.module, DistributedDataParallel) and not last
        with self.module.no_sync() if postpone_reduction else nullcontext():  # type: ignore[operator]
            nats = self.module(**inputs) * scale
            # DDP averages over processes; the global batch's gradient is their sum.
            (nats * self.world_size).backward()
        return nats.detach()

    def gradients(self):
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return ShardedTensors(p.grad for p in self.parameters)  # type: ignore[misc]

    def _update(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gather(self, shards):
        return [tensor.detach().cpu().clone() for tensor in shards]

    def shard(self, tensors):
        return [t.to(p.device, copy=True) for t, p in zip(tensors, self.parameters, strict=True)]

    def optimizer_state(self):
        states = [self.optimizer.state[p] for p in self.parameters if p in self.optimizer.state]
        return {name: [state[name] for state in states] for name in ADAMW_STATE} if states else {}

    def load_optimizer_state(self, state, steps):
        averages = [self.shard(state[name]) for name in ADAMW_STATE]
        for p, *values in zip(self.parameters, *averages, strict=True):
            step = torch.tensor(float(steps))
            self.optimizer.state[p] = {"step": step, **dict(zip(ADAMW_STATE, values, strict=True))}

    def close(self):
        for p in self.parameters:  # gradients of an interrupted step
            p.grad = None


class Shard(NamedTuple):
    """This process's part of one parameter, in elements of the flattened tensors; length 0 if it has none.

    flat_start: where the part begins in the process's flat tensor.
    parameter_start: where it begins in the parameter.
    """

    flat_start: int
    parameter_start: int
    length: int


class ZeroEngine(Engine):
    """DeepSpeed's ZeRO: every process keeps and updates a shard of the flattened weights.

    stage: of ZeRO, 1 to 3.
    offload: keep and update the optimizer state on the CPU.
    """

    def __init__(
        self, loss, parameters, optimizer, stage: int, offload: bool = False, device: str = "cpu"
    ) -> None:
        super().__init__(loss, parameters, optimizer)
        self.stage, self.rank, self.world_size = stage, dist.get_rank(), dist.get_world_size()
        self.device = torch.device(device)
        self.shapes = [p.shape for p in self.parameters]
        self.engine = init_deepspeed(loss, self.parameters, optimizer, stage, offload)
        self.flat, self.shards = self._find_shards()
        elements = torch.tensor(sum(shard.length for shard in self.shards), device=self.device)
        dist.all_reduce(elements)
        assert int(elements) == sum(shape.numel() for shape in self.shapes), (
            "each weight belongs to exactly one process"
        )
        self.weights = ShardedTensors(self._views(self.flat), total=self._total)
        optimizer.state.clear()  # some ZeRO stages try the optimizer out with no gradient
        self._register_hooks()  # after that trial step, which would have called the hooks

    def _find_shards(self) -> tuple[Tensor, list[Shard]]:
        """The flat tensor that the optimizer updates here, and each parameter's shard in it."""
        zero = self.engine.optimizer
        flats = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        assert len(flats) == 1, "one parameter group and one sub-group, so that norms cover all of it"
        shards = []
        for p in self.parameters:
            p: Any  # DeepSpeed stores its bookkeeping on the parameters
            if self.stage == 3:
                _, flat_start, padded = zero.grad_position[zero.get_param_id(p)]
                start = min(self.rank * padded, p.ds_numel)
                shards.append(Shard(flat_start, start, min(padded, p.ds_numel - start)))
            elif p._hp_mapping is None:  # it belongs to other processes
                shards.append(Shard(0, 0, 0))
            else:
                flat, whole = p._hp_mapping.hp_fragment_address, p._hp_mapping.lp_fragment_address
                shards.append(Shard(flat.start, whole.start, flat.numel))
        return flats[0], shards

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Return one view of a flat tensor per parameter; empty where this process has no part of it."""
        return [flat.detach().narrow(0, shard.flat_start, shard.length) for shard in self.shards]

    def _total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        total = values.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def backward(self, inputs, scale, last):
        self.engine.set_gradient_accumulation_boundary(last)
        nats = self.engine(**inputs) * scale
        # DeepSpeed averages over processes, as DDP does.
        self.engine.backward(nats * self.world_size, scale_wrt_gas=False)
        return nats.detach()

    def gradients(self):
        assert self.flat.grad is not None
        return ShardedTensors(self._views(self.flat.grad), total=self._total)

    def _update(self):
        self.engine.step()
        if getattr(self.engine.optimizer, "overflow", False):  # DeepSpeed skipped the step silently
            raise NonFiniteError(
                "the gradient is not finite; lower training.learning_rate or raise training.warmup"
            )

    def gather(self, shards):
        sizes = [shape.numel() for shape in self.shapes]
        vector = torch.zeros(sum(sizes), device=self.device)
        for values, part, shard in zip(shards, vector.split(sizes), self.shards, strict=True):
            part.narrow(0, shard.parameter_start, shard.length).copy_(values)
        dist.all_reduce(vector)  # each element comes from one process and is 0 in the others
        parts = vector.cpu().split(sizes)
        return [part.view(shape).clone() for part, shape in zip(parts, self.shapes, strict=True)]

    def shard(self, tensors):
        return [
            tensor.flatten().narrow(0, shard.parameter_start, shard.length).to(self.flat.device, copy=True)
            for tensor, shard in zip(tensors, self.shards, strict=True)
        ]

    def optimizer_state(self):
        state = self.optimizer.state.get(self.flat, {})
        return {name: self._views(state[name]) for name in ADAMW_STATE if name in state}

    def load_optimizer_state(self, state, steps):
        loaded: dict[str, Any] = {"step": torch.tensor(float(steps))}
        for name in ADAMW_STATE:
            loaded[name] = torch.zeros_like(self.flat.detach())
            for view, values in zip(self._views(loaded[name]), self.shard(state[name]), strict=True):
                view.copy_(values)
        self.optimizer.state[self.flat] = loaded

    def close(self):
        # Stage 3 keeps the base model sharded, and the next stage makes new LoRA layers.
        whole = self.gather(self.weights) if self.stage < 3 else []
        self.engine.destroy()
        # DeepSpeed destroys its optimizer again when the garbage collector finds it. That would remove from
        # the parameters what the next engine stored on them, and the next engine would lose its shards.
        self.engine.optimizer = None
        for p, value in zip(self.parameters, whole, strict=False):
            p.data, p.grad = value.to(self.device), None


def init_deepspeed(loss: nn.Module, parameters, optimizer, stage: int, offload: bool) -> Any:
    """A DeepSpeed engine that only reduces and shards; precision, schedule and clipping stay ours."""
    import deepspeed  # the import takes a second, and most studies do not need it
    import deepspeed.ops

    if not torch.cuda.is_available():  # prevents the compilation of an extension that gloo does not need
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    parameters = list(parameters)
    zero: dict[str, Any] = {"stage": stage, "sub_group_size": 10**12}
    # Each bucket is allocated in full: DeepSpeed's default size is gigabytes, for a small adapter.
    zero["reduce_bucket_size"] = min(5 * 10**8, max(p.numel() for p in parameters) + 2**20)
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # `backward` says which micro-batch is the last
        "gradient_clipping": 0.0,  # the default would clip to 1
        "zero_optimization": zero,
        "zero_allow_untrusted_optimizer": True,  # torch's AdamW, the same on every engine
        "zero_force_ds_cpu_optimizer": False,
    }
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    settings: dict[str, Any] = {"model_parameters": parameters, "config": config}
    engine, *_ = deepspeed.initialize(model=loss, optimizer=optimizer, **settings)
    return engine
