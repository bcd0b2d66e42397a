"""Short sequences of the embedded tasks, trained with any strategy: what the tests of the methods share."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from dgg_ray.core.interfaces import Adapter, StageSetup, Training
from dgg_ray.core.stage import Evaluation, Stage, StageSettings, TaskData, WorkItem, stages_of_run
from dgg_ray.models import embedded
from dgg_ray.readers.embedded import Embedded
from dgg_ray.storage.stage_store import open_store
from dgg_ray.training.checkpoints import CheckpointPolicy
from dgg_ray.training.learner import PeftLearner
from dgg_ray.training.loop import StageRunner
from dgg_ray.training.stage_context import LearnerContext

ORDER = ("words", "digits", "shapes")
TRAINING = Training(batch_size=8, learning_rate=5e-3, schedule="constant", warmup=0.0)


@dataclass
class MethodWorld:
    """A learner of the embedded model, three small tasks and a store."""

    learner: PeftLearner
    tasks: dict
    folder: Path
    adapter: Adapter = Adapter(rank=2)
    training: Training = TRAINING
    fingerprint: str = "embedded"  # of the base model, in the keys

    def __post_init__(self):
        self.store = open_store(self.folder)

    def runner(self, **options) -> StageRunner:
        return StageRunner(self.learner, self.tasks, self.store, 8, make_context=LearnerContext, **options)

    def stages(self, strategy, order=ORDER[:2], seed=0) -> tuple[Stage, ...]:
        """The stages of a run of the strategy."""
        data = [
            TaskData(name, dict(self.tasks[name].digests), {"train": 16, "test": 4}, "exact_match")
            for name in order
        ]
        layout = strategy.layout()
        rank = self.adapter.rank
        if layout:
            rank = layout.rank_for(rank, len(order), self.adapter.budget)
        adapter = self.adapter.with_rank(rank)
        return stages_of_run(StageSettings(self.fingerprint, adapter, self.training, strategy, seed), data)

    def train(self, strategy, order=ORDER[:2], seed=0, **options) -> tuple[Stage, ...]:
        """Train the stages of a run as far as the store lacks them, and return them."""
        stages = self.stages(strategy, order, seed)
        for stage in stages:
            self.runner(**options).run(WorkItem(stage))
        return stages

    def evaluate(self, stage: Stage, task: str) -> list[dict]:
        """The rows of predictions of a task's test examples after a stage."""
        import pyarrow.parquet

        evaluation = Evaluation(task, "test", f"{task} test")
        self.runner().run(WorkItem(stage, (evaluation,)))
        ((_, folder),) = self.store.stored_answers(stage, [evaluation.key])
        return pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()

    def files(self, stage: Stage) -> dict[str, torch.Tensor]:
        """All tensors that the stage stored, by file and name."""
        folder = self.store.open(stage)
        assert folder
        return {
            f"{file.name}/{name}": tensor
            for file in sorted(folder.rglob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }

    def interrupted(self, stage: Stage, after: int) -> None:
        """Train the stage up to a checkpoint after so many steps; stop there as a killed machine would."""

        class Killed(BaseException):
            pass

        def on_step(stage, done, steps):
            if done == after:
                raise Killed

        try:
            self.runner(on_step=on_step, checkpoint_policy=CheckpointPolicy(steps=after)).train(stage)
        except Killed:
            return
        raise AssertionError("the stage has fewer steps")

    def ends_the_same_when_interrupted(self, strategy, order=ORDER) -> bool:
        """Whether a run's last stage stores the same bytes if it is killed after a step and resumed."""
        stages = self.train(strategy, order)
        undisturbed = self.files(stages[-1])
        self.store.discard(stages[-1].key)
        self.interrupted(stages[-1], after=1)
        self.train(strategy, order)
        return same(undisturbed, self.files(stages[-1]))

    def loaded(self, stage: Stage, strategy=None, steps=4) -> LearnerContext:
        """The learner at the end of a stage, ready for steps or, with 0, for answers; and a context of it."""
        folder, layout = self.store.open(stage), strategy and strategy.layout()
        self.learner.start(StageSetup(stage.adapter, self.training, steps, 0, "next", folder, layout))
        return LearnerContext(
            self.learner, stage, self.tasks, self.store, lambda f, *a: f(*a), {stage.task: folder}, steps
        )


def same(a: dict, b: dict) -> bool:
    """Whether two stages stored the same bytes."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def make_learner() -> PeftLearner:
    torch.set_num_threads(1)
    return PeftLearner(embedded.Embedded())


def make_tasks() -> dict:
    """The three tasks, 16 training and 4 other examples each."""
    return {name: Embedded(train=16, validation=4, test=4).read(name) for name in ORDER}


def answer_logits(world: MethodWorld) -> torch.Tensor:
    """Logits (n, V) of the answers to some examples, as the learner is now."""
    learner = world.learner
    encoded = [learner.encode(world.tasks[name].examples["test"][0]) for name in ORDER]
    inputs = learner.inputs_of(encoded)
    learner.peft.eval()
    with torch.no_grad():
        return learner.loss.answer_logits(inputs.pop("labels"), inputs)[0]


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


def with_training(world: MethodWorld, folder: Path, **changes) -> MethodWorld:
    """The same learner and tasks with another training, and a store of its own."""
    return replace(world, folder=folder, training=replace(world.training, **changes))
