"""A toy world: tasks whose examples are numbers, and a learner that is one weight.

Everything that the loop, the store and the strategies promise can be checked on it by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgg_ray.core.interfaces import Adapter, Example, Pieces, Strategy, Task, Training, digest
from dgg_ray.core.stage import Data, Evaluation, Stage, path
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training.loop import Workshop


class OneWeight:
    """Learns θ by gradient descent on (θ - a)²/2, where a is the mean of the batch's answers.

    It answers every question with θ, rounded. `taught` is every example it was shown.
    """

    def __init__(self) -> None:
        self.theta = torch.zeros(1)
        self.taught: list[str] = []
        self.begun: list[str] = []

    def begin(
        self,
        adapter: Adapter,
        training: Training,
        steps,
        seed,
        task,
        parent: Path | None,
        done=0,
        snapshot=None,
    ):
        self.rate = training.learning_rate
        self.theta = (
            load_file(parent / "adapter" / "theta.safetensors")["theta"] if parent else torch.zeros(1)
        )
        self.begun.append(task)
        if not snapshot:
            return {}
        self.theta = snapshot["theta"].clone()
        return {name: [tensor.clone()] for name, tensor in snapshot.items() if name != "theta"}

    def weights(self):
        return Pieces([self.theta])

    def step(self, batch: Sequence[Example], step: int, edit) -> float:
        self.taught += [example.id for example in batch]
        a = sum(float(example.answer) for example in batch) / len(batch)
        gradient = self.theta - a
        edit(Pieces([self.theta]), Pieces([gradient]), step)
        self.theta -= self.rate * gradient
        return float((self.theta - a) ** 2 / 2)

    def answer(self, examples, max_new_tokens):
        return [f"{float(self.theta):.0f}" for _ in examples]

    def snapshot(self, memory):
        kept = {name: value[0].clone() for name, value in memory.items() if isinstance(value, list)}
        return {"theta": self.theta.clone(), **kept}

    def gather(self):
        pass

    def save(self, folder: Path) -> None:
        folder.mkdir()
        save_file({"theta": self.theta.clone()}, folder / "theta.safetensors")


def task_of(name: str, *answers: float) -> Task:
    """A task whose three splits hold the same answers."""
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
        self.store = StageStore(folder)
        self.learner = OneWeight()
        self.shop = Workshop(self.learner, self.tasks, self.store, max_new_tokens=4)

    def data(self, name: str) -> Data:
        task = self.tasks[name]
        return Data(name, dict(task.digests), {s: len(e) for s, e in task.examples.items()}, task.scorer)

    def path(
        self, *order: str, strategy: Strategy | None = None, seed: int = 0, **training
    ) -> tuple[Stage, ...]:
        settings = replace(Training(epochs=1, batch_size=8, learning_rate=1.0), **training)
        data = [self.data(name) for name in order]
        return path("model", Adapter(), settings, strategy or Strategy(), seed, data)

    def evaluation(self, task: str, split: str = "test") -> Evaluation:
        return Evaluation(task, split, digest([task, split]))


@pytest.fixture()
def world(tmp_path: Path) -> World:
    return World(tmp_path / "stages")
