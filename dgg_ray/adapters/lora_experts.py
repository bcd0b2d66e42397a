"""LoRA experts that every token mixes for itself: MoELoRA as in CoIN [1].

    y = W x + s · Σ_e g_e(x) B_e A_e x̃,        g(x) = softmax(R x),        x̃ = dropout(x)

    symbol  here                        shape            unit
    A_e     block e of the rows of A    (r/E, d_in)      -
    B_e     block e of B's columns      (d_out, r/E)     -
    R       lora_router                 (E, d_in)        -
    g       gates                       (N, S, E)        one per token; they add up to 1
    E       experts                     scalar
    s       alpha / r, r of all experts together

Put together along the rank, the experts are one LoRA of rank r whose hidden activations A x̃ are multiplied by
the gates. A is drawn from N(0, 0.01²), B begins at 0 and R as `torch.nn.Linear` begins, as in [1]'s code. All
experts take part in every token. They and the router train in every task and are handed on to the next. With
one expert the gate is 1, and this is LoRA.

For CL-MoE's evaluation the gates may be mixed with fixed ones of a task k, by each example's `route`:

    g(x) = β softmax(R x) + (1 - β) G_k        β = token_share, G_k = `set_task_gates`

[1] Chen et al., NeurIPS 2024, arXiv:2403.08350
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from dgg_ray.core import rng
from dgg_ray.core.errors import StageError
from dgg_ray.core.interfaces import AdapterLayout

if TYPE_CHECKING:
    from torch import Tensor

    from dgg_ray.adapters._lora_layers import LoraModule


@dataclass(frozen=True)
class LoraExperts(AdapterLayout):
    """Experts of equal rank on every adapted layer, and a router for each layer.

    experts: E. The rank is that of all experts together and must be a multiple of it.
    token_share: β, the share of the token's own gates where a route chooses a task's gates.
    """

    experts: Annotated[int, Ge(1)] = 8
    token_share: Annotated[float, Ge(0), Le(1)] = 1.0

    def rank_for(self, rank, tasks, budget):
        return rank - rank % self.experts

    def stored_copies(self, earlier):
        return 2  # a router of E rows adds less than a LoRA of a rank r ≥ E

    def attach(self, model, setup):
        from torch import nn

        from dgg_ray.adapters._lora_layers import lora_modules, stored_layout

        if setup.adapter.rank % self.experts:
            raise StageError(
                f"adapter.rank is {setup.adapter.rank}, which {self.experts} experts cannot share equally; "
                f"set it to a multiple of {self.experts}"
            )
        stored = stored_layout(setup.parent)
        modules = lora_modules(model)
        self.parts.update(modules=modules, hooks=[], route=None, task_gates={}, counts=None, top=0)
        for module in modules:
            a = module.a.weight
            router = nn.Linear(a.shape[1], self.experts, bias=False, device=a.device, dtype=a.dtype)
            module.layer.lora_router = router
            if setup.parent is None:
                draw_experts(module, rng.integer(setup.seed, module.name, "experts"))
            else:
                router.weight.data.copy_(stored[f"{module.name}.lora_router.weight"])
            self._hook(module)

    def _hook(self, module: LoraModule) -> None:
        """Multiply A's output by the gates, which read the layer's input before dropout."""
        kept: list[Tensor] = []

        def keep_gates(dropout, inputs):
            kept[:] = [self._gates(module, inputs[0])]

        def weigh(a, inputs, output):
            gates = kept.pop().repeat_interleave(output.shape[-1] // self.experts, dim=-1)
            return output * gates.to(output.dtype)

        self.parts["hooks"] += [
            module.layer.lora_dropout["default"].register_forward_pre_hook(keep_gates),
            module.a.register_forward_hook(weigh),
        ]

    def _gates(self, module: LoraModule, x: Tensor) -> Tensor:
        """The gates (…, E) of the tokens x (…, d_in), fp32."""
        gates = module.layer.lora_router(x).float().softmax(-1)
        if self.parts["counts"] is not None:
            chosen = gates.topk(self.parts["top"]).indices.flatten()
            self.parts["counts"][module.name] += chosen.bincount(minlength=self.experts)
        if (route := self.parts["route"]) is None:
            return gates
        of_task = route.to(gates) @ self.parts["task_gates"][module.name]  # (N, E)
        of_task = of_task.view(len(route), *[1] * (x.dim() - 2), self.experts)
        return self.token_share * gates + (1 - self.token_share) * of_task

    @property
    def module_names(self) -> list[str]:
        """The adapted layers, in the model's order."""
        return [module.name for module in self.parts["modules"]]

    def set_task_gates(self, gates: Sequence[Tensor]) -> None:
        """Set the fixed gates (K, E) of K tasks for each adapted layer; a route weighs the tasks."""
        self.parts["task_gates"] = dict(zip(self.module_names, gates, strict=True))

    @contextmanager
    def counting(self, top: int) -> Iterator[Mapping[str, Tensor]]:
        """In the block, count for each layer how often each expert is among a token's `top` largest gates."""
        import torch

        device = self.parts["modules"][0].a.weight.device
        zeros = {
            name: torch.zeros(self.experts, dtype=torch.long, device=device) for name in self.module_names
        }
        self.parts.update(counts=zeros, top=min(top, self.experts))
        try:
            yield zeros
        finally:
            self.parts["counts"] = None

    def detach(self):
        for hook in self.parts.pop("hooks", ()):
            hook.remove()
        for module in self.parts.pop("modules", ()):
            del module.layer.lora_router
        self.parts.clear()

    def set_route(self, weights):
        self.parts["route"] = weights


def draw_experts(module: LoraModule, seed: int) -> None:
    """Draw A from N(0, 0.01²) and the router uniformly from ±1/√d_in, on the CPU; set B to zero."""
    import torch

    draws = torch.Generator().manual_seed(seed)
    a, router = module.a.weight, module.layer.lora_router.weight
    bound = router.shape[1] ** -0.5
    a.data.copy_(torch.randn(a.shape, generator=draws) * 0.01)
    router.data.copy_((torch.rand(router.shape, generator=draws) * 2 - 1) * bound)
    module.b.weight.data.zero_()
