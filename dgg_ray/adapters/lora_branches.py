"""LoRA with one A and many B: each example's prompt chooses a few branches in each layer.

    y = W x + s · Σ_i w_i B_i A x̃,        x̃ = dropout(x)
    w = softmax over the top k of R_t m, and 0 for all other branches
    m = mean of x over the tokens of the example's prompt

    symbol  here                    shape           unit
    A       PEFT's lora_A           (r/N, d_in)     -
    B_i     lora_branches.i         (d_out, r/N)    -
    R_t     lora_router             (N, d_in)       -         one for each task t
    w       weights                 (B, N)          one row for each example of a batch; rows add up to 1
    N, k    branches, top           scalar
    s       alpha / r, r of all branches together

A and the branches are handed on from task to task; the branches of a layer that were frozen are trained no
more, but can still be chosen. Each task has a new router, and an example's `route` chooses one at evaluation.
The weights of an example are set by its prompt and stay while its answer is written.

PEFT's own B is 0, is not trained and has no part in the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from dgg_ray.core import rng
from dgg_ray.core.interfaces import AdapterLayout, StageSetup

if TYPE_CHECKING:
    from torch import Tensor

    from dgg_ray.adapters._lora_layers import LoraModule


@dataclass(frozen=True)
class LoraBranches(AdapterLayout):
    """Branches of equal rank on every adapted layer, and a router for each layer and task.

    branches: N. The study's rank is that of all branches together.
    top: k, the number of branches that an example uses in a layer.
    """

    branches: Annotated[int, Ge(1)] = 8
    top: Annotated[int, Ge(1)] = 2

    def rank_for(self, rank, tasks, budget):
        return rank // self.branches

    def stored_copies(self, earlier):
        # A and N branches of B; a router of N rows for each task, each row less than a LoRA of rank 1.
        return 1 + self.branches + self.branches * (earlier + 1)

    def attach(self, model, setup):
        from dgg_ray.adapters._lora_layers import lora_modules, stored_layout

        stored = stored_layout(setup.parent)
        modules = lora_modules(model)
        self.parts.update(modules=modules, hooks=[], route=None, mask=None, kept={}, usage=None)
        self.parts.update(routers={}, frozen={}, freeze_next={})
        for module in modules:
            self._add_branches(module, setup, stored)
            self._add_router(module, setup, stored)
            self._hook(module)

    def _add_branches(self, module: LoraModule, setup: StageSetup, stored: Mapping[str, Tensor]) -> None:
        """Put the branches on a layer; those that the parent chose to freeze are not trained."""
        import torch
        from torch import nn

        own_b = module.b.weight
        own_b.requires_grad_(False).zero_()
        names = [f"{module.name}.branch_{i}" for i in range(self.branches)]  # of frozen ones, as stored
        chosen = stored.get(f"{module.name}.frozen", torch.zeros(self.branches, dtype=torch.bool)).clone()
        if not setup.steps:
            self.parts["frozen"][module.name] = torch.tensor([name in stored for name in names])
        else:
            self.parts["frozen"][module.name] = chosen.clone()
        self.parts["freeze_next"][module.name] = chosen
        branches = []
        for i, name in enumerate(names):
            trained = f"{module.name}.lora_branches.{i}"
            value = stored[name if name in stored else trained] if stored else torch.zeros_like(own_b)
            branch = nn.Parameter(value.to(own_b.device, own_b.dtype, copy=True))
            branches.append(branch.requires_grad_(not self.parts["frozen"][module.name][i]))
        module.layer.lora_branches = nn.ParameterList(branches)

    def _add_router(self, module: LoraModule, setup: StageSetup, stored: Mapping[str, Tensor]) -> None:
        """Put the task's router on a layer, and keep those of earlier tasks (K, N, d_in)."""
        import torch
        from torch import nn

        a = module.a.weight
        router = nn.Linear(a.shape[1], self.branches, bias=False, device=a.device, dtype=a.dtype)
        of_parent = f"{module.name}.lora_router.weight"
        earlier = stored.get(f"{module.name}.routers", torch.empty(0, self.branches, a.shape[1])).to(a)
        if setup.steps and stored:
            earlier = torch.cat([earlier, stored[of_parent].to(a)[None]])
        if setup.steps or not stored:
            draws = torch.Generator().manual_seed(
                rng.integer(setup.seed, module.name, f"router of {setup.task}")
            )
            uniform = torch.rand(router.weight.shape, generator=draws) * 2 - 1
            router.weight.data.copy_(uniform * a.shape[1] ** -0.5)  # as torch.nn.Linear begins
        else:
            router.weight.data.copy_(stored[of_parent])
        self.parts["routers"][module.name] = earlier
        module.layer.lora_router = router

    def _hook(self, module: LoraModule) -> None:
        """Let the branches take the place of PEFT's B."""
        kept: list[Tensor] = []

        def keep_weights(dropout, inputs):
            kept[:] = [self._weights(module, inputs[0])]

        def add_branches(b, inputs, output):
            import torch
            from torch.nn.functional import linear

            hidden, weights = inputs[0], kept.pop()  # (B, S, r/N), (B, N)
            mixed = hidden[:, :, None] * weights[:, None, :, None].to(hidden.dtype)  # (B, S, N, r/N)
            return linear(mixed.flatten(2), torch.cat(list(module.layer.lora_branches), 1))

        self.parts["hooks"] += [
            module.layer.lora_dropout["default"].register_forward_pre_hook(keep_weights),
            module.b.register_forward_hook(add_branches),
        ]

    def _weights(self, module: LoraModule, x: Tensor) -> Tensor:
        """The branches' weights (B, N) for a batch x (B, S, d_in), fp32."""
        import torch

        mask = self.parts["mask"]
        if x.shape[1] != mask.shape[1]:  # a later token of an answer
            return self.parts["kept"][module.name]
        mask = mask.to(x.device, torch.float32)[..., None]
        mean = (x.float() * mask).sum(1) / mask.sum(1)
        logits = module.layer.lora_router(mean.to(x.dtype)).float()
        if (route := self.parts["route"]) is not None:
            of_earlier = torch.einsum("bd,knd->bkn", mean, self.parts["routers"][module.name].float())
            logits = (torch.cat([of_earlier, logits[:, None]], 1) * route.to(logits)[..., None]).sum(1)
        top = logits.topk(min(self.top, self.branches))
        weights = torch.zeros_like(logits).scatter(1, top.indices, top.values.softmax(1))
        self.parts["kept"][module.name] = weights.detach()
        if self.parts["usage"] is not None:
            self.parts["usage"][module.name] += weights.detach().sum(0)
        return weights

    def before_forward(self, inputs, prompts):
        import torch

        self.parts["mask"] = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        for row, (first, end) in zip(self.parts["mask"], prompts, strict=True):
            row[first:end] = True

    @contextmanager
    def watching(self) -> Iterator[Mapping[str, Tensor]]:
        """In the block, sum the branches' weights over examples, for each layer."""
        import torch

        modules = self.parts["modules"]
        self.parts["usage"] = {m.name: torch.zeros(self.branches, device=m.a.weight.device) for m in modules}
        try:
            yield self.parts["usage"]
        finally:
            self.parts["usage"] = None

    def freeze(self, usage: Mapping[str, Tensor]) -> None:
        """Freeze each layer's `top` most used branches from the next task on, but leave `top` to train."""
        for name, sums in usage.items():
            chosen = self.parts["freeze_next"][name]
            for i in sums.argsort(descending=True, stable=True)[: self.top].tolist():
                if chosen.sum() < self.branches - self.top:
                    chosen[i] = True

    def detach(self):
        for hook in self.parts.pop("hooks", ()):
            hook.remove()
        for module in self.parts.pop("modules", ()):
            del module.layer.lora_branches, module.layer.lora_router
            module.b.weight.requires_grad_(True)
        self.parts.clear()

    def set_route(self, weights):
        self.parts["route"] = weights

    def frozen_tensors(self):
        tensors: dict[str, Tensor] = {}
        for module in self.parts["modules"]:
            frozen = self.parts["frozen"][module.name]
            for i, branch in enumerate(module.layer.lora_branches):
                if frozen[i]:
                    tensors[f"{module.name}.branch_{i}"] = branch.detach()
            if (routers := self.parts["routers"][module.name]).numel():
                tensors[f"{module.name}.routers"] = routers
            tensors[f"{module.name}.frozen"] = self.parts["freeze_next"][module.name]
        return tensors
