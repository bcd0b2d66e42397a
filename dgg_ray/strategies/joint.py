"""Joint training: all tasks at once, from the base model, for the same number of epochs.

It is an upper reference, not a ceiling: single tasks are known to end above it. It depends on the seed
but not on the order, so it is one stage however many orders a study has.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgg_ray.core.strategy import Strategy


@dataclass(frozen=True)
class Joint(Strategy):
    """Train on the union of all tasks."""

    known_from = "published formula"

    simultaneous = True

    def effect(self, task, earlier):
        return {}
