"""How several processes learn as one: whole tensors in each, or a piece of each tensor.

    engine            who holds the weights, moments and gradient     what reduces the gradient
    plain             one process, all of it                          -
    ddp               every process, all of it                        torch DDP
    zero1 zero2 zero3 every process, a piece (Rajbhandari et al. 2020, arXiv:1910.02054; zero3 shards
                      the frozen base model too)                      DeepSpeed

All compute the same step: gradients are summed over the *global* batch, then a hook right before the
optimizer's update (the door) lets the strategy edit them, then they are clipped where that was
asked for, then AdamW moves the weights. The door sees fp32 values after accumulation, reduction and
unscaling, whatever the engine. DeepSpeed's own clipping is off: it would come before the edit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dgg_ray.core.errors import NotFinite
from dgg_ray.core.interfaces import Pieces

Door = Callable[[Pieces, Pieces], None]  # (weights, gradients): may change the gradients in place
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


def shut(weights: Pieces, gradients: Pieces) -> None:
    """The door where nothing is edited."""


class Engine(ABC):
    """Gradients, the optimizer's step, and its memory, for tensors that are whole or in pieces.

    loss: module that maps a batch's inputs to a summed loss.
    parameters: the trainable ones, in an order that is the same in every process.
    weights: what the optimizer updates: each parameter, or this process's piece of it.
    """

    weights: Pieces

    def __init__(
        self, loss: nn.Module, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        self.loss, self.parameters, self.optimizer = loss, list(parameters), optimizer
        self.door: Door = shut

    @abstractmethod
    def backward(self, inputs: Mapping[str, Tensor], scale: float, last: bool) -> Tensor:
        """Add one micro-batch's gradient; `last` reduces it over the processes. Returns the loss · scale."""

    def step(self, door: Door) -> None:
        """One update with the gradients as `door` leaves them."""
        self.door = door
        self._step()

    @abstractmethod
    def gradients(self) -> Pieces:
        """Beside `weights`; there is something to see from the reduction to the update only."""

    @abstractmethod
    def whole(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """What lies in pieces like `weights`, whole, in every process, on the CPU. All must call it."""

    @abstractmethod
    def cut(self, whole: Sequence[Tensor]) -> list[Tensor]:
        """This process's pieces of whole tensors, as copies: the inverse of `whole`."""

    @abstractmethod
    def moments(self) -> dict[str, list[Tensor]]:
        """The optimizer's memory by name, in pieces like `weights`; empty before the first step."""

    @abstractmethod
    def resume(self, moments: Mapping[str, Sequence[Tensor]], steps: int) -> None:
        """Take up whole `moments` after that many steps."""

    @abstractmethod
    def close(self) -> None:
        """Leave the parameters whole and plain, for whatever comes next."""

    @abstractmethod
    def _step(self) -> None: ...

    def _open(self, *_: Any) -> None:
        with torch.no_grad():
            self.door(self.weights, self.gradients())


class Whole(Engine):
    """One process, or several that each hold everything (DDP)."""

    def __init__(self, loss, parameters, optimizer, world: int = 1) -> None:
        super().__init__(loss, parameters, optimizer)
        self.world = world
        self.weights = Pieces(self.parameters)
        # A batch without pictures passes a trained projector by.
        skipped = len(optimizer.param_groups) > 1
        self.module = DistributedDataParallel(loss, find_unused_parameters=skipped) if world > 1 else loss
        optimizer.register_step_pre_hook(self._open)

    def backward(self, inputs, scale, last):
        wait = isinstance(self.module, DistributedDataParallel) and not last
        with self.module.no_sync() if wait else nullcontext():  # type: ignore[operator]
            nats = self.module(**inputs) * scale
            # DDP averages over processes; the global batch's gradient is their sum.
            (nats * self.world).backward()
        return nats.detach()

    def gradients(self):
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return Pieces(p.grad for p in self.parameters)  # type: ignore[misc]

    def _step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def whole(self, pieces):
        return [piece.detach().cpu().clone() for piece in pieces]

    def cut(self, whole):
        return [t.to(p.device, copy=True) for t, p in zip(whole, self.parameters, strict=True)]

    def moments(self):
        states = [self.optimizer.state[p] for p in self.parameters if p in self.optimizer.state]
        return {name: [state[name] for state in states] for name in MOMENTS} if states else {}

    def resume(self, moments, steps):
        for p, *values in zip(self.parameters, *(self.cut(moments[name]) for name in MOMENTS), strict=True):
            step = torch.tensor(float(steps))
            self.optimizer.state[p] = {"step": step, **dict(zip(MOMENTS, values, strict=True))}

    def close(self):
        for p in self.parameters:  # of a step that was broken off
            p.grad = None


class Zero(Engine):
    """DeepSpeed's ZeRO: every process keeps and updates a piece of the flattened weights.

    offload: keep the optimizer's memory, and update, on the CPU.
    """

    def __init__(
        self, loss, parameters, optimizer, stage: int, offload: bool = False, device: str = "cpu"
    ) -> None:
        super().__init__(loss, parameters, optimizer)
        self.stage, self.rank, self.world = stage, dist.get_rank(), dist.get_world_size()
        self.device = torch.device(device)
        self.shapes = [p.shape for p in self.parameters]
        self.engine = initialized(loss, self.parameters, optimizer, stage, offload)
        self.flat, self.places = self._pieces()
        held = torch.tensor(sum(n for *_, n in self.places), device=self.device)
        dist.all_reduce(held)
        assert int(held) == sum(shape.numel() for shape in self.shapes), "each weight is one process's"
        self.weights = Pieces(self._along(self.flat), total=self._total)
        optimizer.state.clear()  # some stages try the optimizer out, with no gradient
        # After that trial: a hook that was there before would have been called with it.
        optimizer.register_step_pre_hook(self._open)

    def _pieces(self) -> tuple[Tensor, list[tuple[int, int, int]]]:
        """The flat tensor that the optimizer updates here, and for each parameter (place in it, place in
        the parameter, length), in elements."""
        zero = self.engine.optimizer
        flats = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        assert len(flats) == 1, "one parameter group and one sub-group, so that norms see all of it"
        places = []
        for p in self.parameters:
            p: Any  # DeepSpeed hangs its book-keeping on the parameters
            if self.stage == 3:
                _, here, padded = zero.grad_position[zero.get_param_id(p)]
                there = min(self.rank * padded, p.ds_numel)
                places.append((here, there, min(padded, p.ds_numel - there)))
            elif p._hp_mapping is None:  # another process's alone
                places.append((0, 0, 0))
            else:
                here, there = p._hp_mapping.hp_fragment_address, p._hp_mapping.lp_fragment_address
                places.append((here.start, there.start, here.numel))
        return flats[0], places

    def _along(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat tensor, one for each parameter; empty where none of it is here."""
        return [flat.detach().narrow(0, here, length) for here, _, length in self.places]

    def _total(self, values: Tensor) -> Tensor:
        whole = values.to(self.device, copy=True)
        dist.all_reduce(whole)
        return whole.to(values.device)

    def backward(self, inputs, scale, last):
        self.engine.set_gradient_accumulation_boundary(last)
        nats = self.engine(**inputs) * scale
        self.engine.backward(nats * self.world, scale_wrt_gas=False)  # averaged over processes, as DDP does
        return nats.detach()

    def gradients(self):
        assert self.flat.grad is not None
        return Pieces(self._along(self.flat.grad), total=self._total)

    def _step(self):
        self.engine.step()
        if getattr(self.engine.optimizer, "overflow", False):  # it leaves the step out, without a word
            raise NotFinite("the gradient is not finite; lower training.learning_rate or raise warmup")

    def whole(self, pieces):
        sizes = [shape.numel() for shape in self.shapes]
        vector = torch.zeros(sum(sizes), device=self.device)
        for piece, part, (_, there, n) in zip(pieces, vector.split(sizes), self.places, strict=True):
            part.narrow(0, there, n).copy_(piece)
        dist.all_reduce(vector)  # each element is one process's, 0 in the others
        parts = vector.cpu().split(sizes)
        return [part.view(shape).clone() for part, shape in zip(parts, self.shapes, strict=True)]

    def cut(self, whole):
        pairs = zip(whole, self.places, strict=True)
        return [t.flatten().narrow(0, there, n).to(self.flat.device, copy=True) for t, (_, there, n) in pairs]

    def moments(self):
        state = self.optimizer.state.get(self.flat, {})
        return {name: self._along(state[name]) for name in MOMENTS if name in state}

    def resume(self, moments, steps):
        state: dict[str, Any] = {"step": torch.tensor(float(steps))}
        for name in MOMENTS:
            state[name] = torch.zeros_like(self.flat.detach())
            for place, piece in zip(self._along(state[name]), self.cut(moments[name]), strict=True):
                place.copy_(piece)
        self.optimizer.state[self.flat] = state

    def close(self):
        values = self.whole(self.weights) if self.stage < 3 else []
        self.engine.destroy()
        # DeepSpeed does that again when the garbage collector comes by, and would take from the parameters
        # what the next engine hung on them: its process would see nothing of its own piece.
        self.engine.optimizer = None
        # Stage 3 keeps the base model in pieces, and whoever comes next makes new LoRA layers.
        for p, value in zip(self.parameters, values, strict=False):
            p.data, p.grad = value.to(self.device), None


def initialized(loss: nn.Module, parameters, optimizer, stage: int, offload: bool) -> Any:
    """A DeepSpeed engine that reduces and shards, and leaves precision, schedule and clipping to us."""
    import deepspeed  # takes a second, and most studies do not need it
    import deepspeed.ops

    if not torch.cuda.is_available():  # it would compile an extension that gloo does not need
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    parameters = list(parameters)
    zero: dict[str, Any] = {"stage": stage, "sub_group_size": 10**12}
    # Each bucket is allocated whole: one of DeepSpeed's default size is gigabytes around a small adapter.
    zero["reduce_bucket_size"] = min(5 * 10**8, max(p.numel() for p in parameters) + 2**20)
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # we say ourselves which micro-batch is the last
        "gradient_clipping": 0.0,  # by default it clips to 1
        "zero_optimization": zero,
        "zero_allow_untrusted_optimizer": True,  # torch's AdamW, on every engine the same
        "zero_force_ds_cpu_optimizer": False,
    }
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    settings: dict[str, Any] = {"model_parameters": parameters, "config": config}
    engine, *_ = deepspeed.initialize(model=loss, optimizer=optimizer, **settings)
    return engine
