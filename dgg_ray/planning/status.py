"""The progress of a study, in words and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgg_ray.planning.plan import Plan


@dataclass(frozen=True)
class StudyStatus:
    """The progress of a study.

    live: what runs now, as the driver notes it: `running` stages with their steps, `queued` items.
    best: the best setting so far with its objective; empty before one was evaluated.
    failed: one line for each kind of failure.
    """

    plan: Plan
    live: Mapping[str, Any]
    best: str
    failed: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        return {**self.plan.as_json(), **self.live, "best": self.best, "failed": list(self.failed)}

    def __str__(self) -> str:
        lines = [str(self.plan)]
        lines.append(f"  now               {len(self.live['running'])} running, {self.live['queued']} queued")
        for stage in self.live["running"]:
            lines.append(f"    {stage['stage']}  step {stage['steps'][0]}/{stage['steps'][1]}")
        lines.append(f"  best so far       {self.best or 'none yet'}")
        lines += [f"  failed            {line}" for line in self.failed]
        return "\n".join(lines)
