"""Time each strategy's training step and evaluation against plain LoRA's in the same run.

    python benchmarks/methods.py                    every shipped strategy on one CPU thread
    python benchmarks/methods.py --only ewc,lwf     some of them

Two learners hold one stage each: plain fine-tuning and a strategy's last stage. Rounds of both alternate on
batches of the same task and size. The ratio is of CPU seconds, which other work on the machine disturbs less
than wall time, and is the median over the rounds. Each strategy is timed at its second task, and one that
keeps a slot or prompts for each task at its tenth too. An evaluation encodes its examples anew where a
strategy routes by features.

Stored bytes are of the last stage's tensors. The formula is 4 · trained weights · copies that its layout
declares; headers and what a strategy hands on come on top. Facts are counted over all earlier tasks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from dgg_ray.core import plugins
from dgg_ray.core.interfaces import Adapter, Task, Training
from dgg_ray.core.stage import Stage, StageSettings, TaskData, stages_of_run
from dgg_ray.models.embedded import Embedded
from dgg_ray.readers.embedded import TASKS
from dgg_ray.readers.embedded import Embedded as Reader
from dgg_ray.storage.stage_store import open_store
from dgg_ray.training.batches import stage_batches
from dgg_ray.training.learner import PeftLearner
from dgg_ray.training.loop import StageRunner
from dgg_ray.training.memory_check import fresh_copy
from dgg_ray.training.stage_context import LearnerContext
from dgg_ray.training.strategy_instance import load_state, step_hooks, strategy_of

BATCH, NEW_TOKENS, FEW, MANY = 16, 4, 2, 10
TRAINING = Training(batch_size=BATCH, learning_rate=1e-4, schedule="constant", warmup=0.0)
GOALS = {"ewc": 1.10, "l2sp": 1.10, "reg_lora": 1.10, "o_lora": 1.10, "lwf": 1.45, "a_gem": 2.1}
GOAL_OF_SLOTS = 1.3  # at the tenth task
NOT_SEQUENTIAL = ("joint",)
SETTINGS = {name: {"reference_examples": BATCH} for name in ("a_gem", "gem")}  # as many as a step has


def make_tasks(number: int) -> dict[str, Task]:
    """The embedded tasks in turn, each a task of its own."""
    of_name = {name: Reader(train=2 * BATCH, validation=4, test=BATCH).read(name) for name in TASKS}
    in_turn = [list(of_name.values())[i % len(of_name)] for i in range(number)]
    return {f"{t.name} {i}": replace(t, name=f"{t.name} {i}") for i, t in enumerate(in_turn)}


@dataclass
class Side:
    """A learner at the last stage of a strategy's run, in a store of its own."""

    learner: PeftLearner
    strategy: Any
    tasks: dict[str, Task]
    folder: Path
    rank: int

    def __post_init__(self) -> None:
        self.store = open_store(self.folder)
        self.runner = StageRunner(
            self.learner, self.tasks, self.store, NEW_TOKENS, make_context=LearnerContext
        )

    def stage(self) -> Stage:
        sizes = {"train": 2 * BATCH, "test": BATCH}
        data = [TaskData(n, dict(t.digests), sizes, t.scorer) for n, t in self.tasks.items()]
        layout, adapter = self.strategy.layout(), Adapter(rank=self.rank)
        if layout:
            adapter = adapter.with_rank(layout.rank_for(self.rank, len(data), adapter.budget))
        return stages_of_run(StageSettings("embedded", adapter, TRAINING, self.strategy, 0), data)[-1]

    def training_step(self) -> Callable[[], Any]:
        """Train the earlier stages, start the last one, and return its step on one batch."""
        stage = self.stage()
        parent = self.runner.parent_folder(stage)
        strategy = fresh_copy(strategy_of(stage))
        load_state(strategy, parent)
        batches = stage_batches(strategy, stage, self.tasks)
        setup = self.runner.setup_of(stage, batches.steps, parent)
        self.runner.start_or_resume(stage, setup, strategy, None)
        for phase in sorted(batches.first_steps.values()):
            with torch.no_grad():
                strategy.begin_phase(phase, self.learner.weights())
        hooks, batch, steps = step_hooks(strategy), batches.of_step[-1], count()
        return lambda: self.learner.step(batch, next(steps), strategy.edit_gradient, hooks)

    def answers(self) -> Callable[[], Any]:
        """Finish the last stage and return its evaluation of one batch."""
        stage = self.stage()
        self.runner.train(stage)
        self.runner.load_finished(stage)
        route, examples = self.runner.router(stage), self.tasks[stage.task].examples["test"]

        def evaluate() -> None:
            self.learner.features.clear()
            self.learner.answer(examples, NEW_TOKENS, route(examples))

        return evaluate

    def stored(self) -> tuple[int, int]:
        """(bytes of the last stage's tensors, bytes that the formula gives)."""
        stage, layout = self.stage(), self.strategy.layout()
        folder, record = self.store.open(stage), self.store.record(stage)
        assert folder
        assert record
        found = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        copies = layout.stored_copies(len(stage.earlier)) if layout else 1
        return found, 4 * record["parameters"]["trainable"] * copies

    def facts(self) -> list[int]:
        """The size in bytes of each stored fact."""
        return [file.stat().st_size for file in self.folder.glob("facts/*/*.safetensors")]


def seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def ratio(run: Callable[[], Any], plain: Callable[[], Any], rounds: int) -> float:
    """Median over rounds of run's time against plain's; the first of the two alternates."""
    run()
    plain()
    ratios = []
    for turn in range(rounds):
        times = {f: seconds(f) for f in ((run, plain) if turn % 2 else (plain, run))}
        ratios.append(times[run] / times[plain])
    return statistics.median(ratios)


def measure(name: str, number: int, learners: tuple[PeftLearner, PeftLearner], rank: int, rounds: int) -> str:
    """Measure a strategy at its task of that number; return the row of the table."""
    tasks = make_tasks(number)
    finetune = plugins.find("strategies", "finetune")()
    strategy = plugins.find("strategies", name)(**SETTINGS.get(name, {}))
    with tempfile.TemporaryDirectory() as folder:
        plain = Side(learners[0], finetune, dict(list(tasks.items())[-FEW:]), Path(folder, "plain"), rank)
        method = Side(learners[1], strategy, tasks, Path(folder, "method"), rank)
        step = ratio(method.training_step(), plain.training_step(), rounds)
        evaluation = ratio(method.answers(), plain.answers(), rounds)
        found, formula = method.stored()
        facts = method.facts()
    goal = GOALS.get(name) if number == FEW else GOAL_OF_SLOTS
    reached = "" if goal is None else f"{goal:.2f} {'reached' if step <= goal else 'NOT reached'}"
    stored = f"{found / 1e6:>11.3f}{formula / 1e6:>9.3f}{len(facts):>7}{sum(facts) / 1e6:>7.3f}"
    return f"{name:<14}{number:>5}{step:>7.2f}{evaluation:>7.2f}{stored}  {reached}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["embedded"], default="embedded")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", help="names of strategies, separated by commas")
    o = parser.parse_args()

    torch.set_num_threads(1)
    learners = PeftLearner(Embedded()), PeftLearner(Embedded())
    shipped = [name for name in plugins.names("strategies") if name not in NOT_SEQUENTIAL]
    print(f"rank {o.rank}, batch {BATCH}, {o.rounds} rounds, load at the start {os.getloadavg()[0]:.1f}")
    print("strategy       task   step   eval  stored MB  formula  facts     MB  goal of a step", flush=True)
    for name in o.only.split(",") if o.only else shipped:
        layout = plugins.find("strategies", name)().layout()
        grows = layout is not None and layout.stored_copies(1) > 1
        for number in (FEW, MANY) if grows else (FEW,):
            print(measure(name, number, learners, o.rank, o.rounds), flush=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
