"""Sequential fine-tuning: nothing is done against forgetting.

It is the lower reference. Every other strategy at strength 0 without a buffer must equal it bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgg_ray.core.strategy import Strategy


@dataclass(frozen=True)
class Finetune(Strategy):
    """Train each task from the end of the one before."""

    known_from = "published formula"

    def effect(self, task, earlier):
        return {}
