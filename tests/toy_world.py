"""A toy world: tasks whose examples are numbers, and a learner with one weight.

The promises of the stage runner, the store and the strategies can be checked on it by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import Adapter, Example, ShardedTensors, StageSetup, Task, Training
from dgg_ray.core.stage import Evaluation, Stage, StageSettings, TaskData, stages_of_run
from dgg_ray.core.strategy import Strategy
from dgg_ray.storage.stage_store import open_store
from dgg_ray.training.loop import StageRunner


class OneWeight:
    """Learns θ by gradient descent on (θ - a)²/2, where a is the mean of the batch's answers.

    It answers every question with θ, rounded. `taught` lists the ids of all training examples, in order.
    """

    def __init__(self) -> None:
        self.theta = torch.zeros(1)
        self.taught: list[str] = []
        self.begun: list[str] = []

    def start(self, setup: StageSetup) -> None:
        self.rate = setup.training.learning_rate
        self.theta = torch.zeros(1)
        if setup.parent:
            self.theta = load_file(setup.parent / "adapter" / "theta.safetensors")["theta"]
        self.begun.append(setup.task)

    def resume(self, setup: StageSetup, done: int, checkpoint):
        self.start(setup)
        self.theta = checkpoint["theta"].clone()
        return {name: [tensor.clone()] for name, tensor in checkpoint.items() if name != "theta"}

    def weights(self):
        return ShardedTensors([self.theta])

    def step(self, batch: Sequence[Example], step: int, edit, hooks=None) -> float:
        self.taught += [example.id for example in batch]
        a = sum(float(example.answer) for example in batch) / len(batch)
        gradient = self.theta - a
        edit(ShardedTensors([self.theta]), ShardedTensors([gradient]), step)
        self.theta -= self.rate * gradient
        if hooks and hooks.after:
            hooks.after(self.weights(), step)
        return float((self.theta - a) ** 2 / 2)

    def answer(self, examples, max_new_tokens, route=None):
        return [f"{float(self.theta):.0f}" for _ in examples]

    def checkpoint_tensors(self, memory):
        lists = {name: value[0].clone() for name, value in memory.items() if isinstance(value, list)}
        return {"theta": self.theta.clone(), **lists}

    def gather(self):
        pass

    def gather_list(self, shards):
        return [tensor.clone() for tensor in shards]

    def parameter_counts(self):
        return {"trainable": self.theta.numel(), "stored": self.theta.numel()}

    def save(self, folder: Path) -> None:
        folder.mkdir()
        save_file({"theta": self.theta.clone()}, folder / "theta.safetensors")


def task_of(name: str, *answers: float) -> Task:
    """Return a task whose three splits hold the same answers."""
    examples = {
        split: [Example(f"{name}-{split}-{i}", "how much?", f"{a:g}") for i, a in enumerate(answers)]
        for split in ("train", "validation", "test")
    }
    return Task(name, examples, {split: digest([name, split, answers]) for split in examples})


class World:
    """Three tasks, a store, and a learner of one weight."""

    def __init__(self, folder: Path) -> None:
        tasks = (task_of("ones", 1, 1), task_of("fours", 4, 4, 4), task_of("nines", 9))
        self.tasks = {task.name: task for task in tasks}
        self.store = open_store(folder)
        self.learner = OneWeight()
        self.runner = StageRunner(self.learner, self.tasks, self.store, max_new_tokens=4)

    def data(self, name: str) -> TaskData:
        task = self.tasks[name]
        return TaskData(name, dict(task.digests), {s: len(e) for s, e in task.examples.items()}, task.scorer)

    def stages_of(
        self, *order: str, strategy: Strategy | None = None, seed: int = 0, **training
    ) -> tuple[Stage, ...]:
        trained_with = replace(Training(epochs=1, batch_size=8, learning_rate=1.0), **training)
        settings = StageSettings("model", Adapter(), trained_with, strategy or Strategy(), seed)
        return stages_of_run(settings, [self.data(name) for name in order])

    def evaluation(self, task: str, split: str = "test") -> Evaluation:
        return Evaluation(task, split, digest([task, split]))
