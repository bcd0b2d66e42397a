"""The method that tables of other papers call CL-MoE: MoELoRA with six experts.

CL-MoE [1] adds to MoELoRA a merge of experts after each task, and gates of a task beside those of a token. In
the released codes of MCITlib and Prism neither takes part: the merge is not called or changes no tensor, and
the mixing is commented out. Rows of that name therefore are MoELoRA at another rank, with six experts, one
for each task of UCIT. This strategy is for comparison with such rows; the rank is that of the study (MCITlib:
96). `cl_moe_like` follows the description in [1].

[1] Huai et al., CVPR 2025, arXiv:2503.00413
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from dgg_ray.adapters.lora_experts import LoraExperts
from dgg_ray.core.strategy import ReplayStrategy


@dataclass(frozen=True)
class CLMoE(ReplayStrategy):
    """Fine-tune as MoELoRA does, with as many experts as MCIT tables use under this name.

    experts: E, the number of experts, which share the rank of the study equally.
    """

    known_from = "released code"

    experts: Annotated[int, Ge(1)] = 6

    def layout(self):
        return LoraExperts(self.experts)

    def effect(self, task, earlier):
        return self.replay_effect(earlier)
