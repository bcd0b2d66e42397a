"""The batches of a stage, in their order: which examples each optimizer step sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dgg_ray.core import rng
from dgg_ray.core.interfaces import Example, Task
from dgg_ray.core.stage import Stage
from dgg_ray.core.strategy import Strategy
from dgg_ray.training import hook_checks


class StageBatches(NamedTuple):
    """The batches of all phases of a stage.

    of_step: the examples of each optimizer step. first_steps: the step that begins phase 1, 2, … → the phase.
    examples: number of different examples that the strategy chose.
    """

    of_step: list[list[Example]]
    first_steps: dict[int, int]
    examples: int

    @property
    def steps(self) -> int:
        return len(self.of_step)


def stage_batches(strategy: Strategy, stage: Stage, tasks: Mapping[str, Task]) -> StageBatches:
    """The batches of the examples that the strategy chooses, phase after phase."""
    new = [example for name in stage.trained_tasks for example in tasks[name].examples["train"]]
    earlier = [tasks[name] for name in stage.earlier]
    examples = hook_checks.chosen_examples(strategy, new, earlier, stage.seed)
    of_step: list[list[Example]] = []
    first_steps: dict[int, int] = {}
    for phase, part in enumerate(hook_checks.phases_of(strategy, examples, stage.seed)):
        if phase:
            first_steps[len(of_step)] = phase
        of_step += shuffled_batches(part, stage, phase)
    return StageBatches(of_step, first_steps, len(examples))


def shuffled_batches(examples: Sequence[Example], stage: Stage, phase: int = 0) -> Iterator[list[Example]]:
    """The stage's batches, one per optimizer step; each epoch of each phase is a permutation of its own."""
    size = stage.training.batch_size
    purpose = f"shuffle {phase}" if phase else "shuffle"
    for epoch in range(stage.training.epochs):
        order = rng.permutation(len(examples), stage.seed, stage.task, purpose, epoch)
        for first in range(0, len(examples), size):
            yield [examples[i] for i in order[first : first + size]]
