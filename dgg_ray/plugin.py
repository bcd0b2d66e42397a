"""Write your own plug-ins: the one module to import from, stable between versions.

A strategy. Settings are fields; the study file is checked against their bounds.

    from dataclasses import dataclass
    from typing import Annotated
    from annotated_types import Ge
    from dgg_ray.plugin import Strategy

    @dataclass(frozen=True)
    class Pull(Strategy):
        \"""Pull the weights towards the start of each stage. strength: of the pull.\"""

        strength: Annotated[float, Ge(0)] = 0.1

        def begin_task(self, weights, task, earlier, seed):
            if earlier:
                self.memory["anchor"] = [theta.detach().clone() for theta in weights]

        def edit_gradient(self, weights, gradients, step):
            for theta, start, g in zip(weights, self.memory.get("anchor", ()), gradients):
                g += self.strength * (theta - start)

A reader. It also chooses the scorer of its task.

    from dgg_ray.plugin import SPLITS, Example, Reader, Task

    @dataclass(frozen=True)
    class Sums(Reader):
        \"""Ask for sums of two digits. size: number of examples in each split.\"""

        size: Annotated[int, Ge(1)] = 30

        def read(self, name):
            examples = {split: [] for split in SPLITS}
            for i in range(len(SPLITS) * self.size):
                a, b = i % 10, i // 10 % 10
                examples[SPLITS[i // self.size]].append(Example(str(i), f"{a} + {b} = ?", str(a + b)))
            return Task(name, examples, scorer="mine:same_length")

A scorer, and a metric of a run's score matrix. `RANGE` bounds the metric's intervals.

    from dgg_ray.plugin import MetricValue, Score, ScoreMatrix, mean

    def same_length(predictions, examples) -> Score:
        each = tuple(float(len(p or "") == len(e.answer)) for p, e in zip(predictions, examples))
        return Score(sum(each) / max(len(each), 1), each)

    RANGE = (0.0, 1.0)

    def last_task(scores: ScoreMatrix) -> MetricValue:
        return mean(scores.R[..., -1, -1:])

Where the file goes. If the file `mine.py` lies beside the study file, the study says `name: mine:Pull`,
`reader: mine:Sums` and `objective: mine:last_task`. In an installed package, entry points give short names,
such as `name: pull`.

    [project.entry-points."dgg_ray.strategies"]
    pull = "mine:Pull"

The other groups are `dgg_ray.readers`, `dgg_ray.scorers`, `dgg_ray.models` and `dgg_ray.metrics`. An
installed package must be installed on every machine that trains. A plug-in enters the keys of finished work
by its source: after an edit its stages are trained anew.
"""

from dgg_ray.core.errors import DggError, Fault, StageError, StudyError
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import (
    SPLITS,
    Adapter,
    AdapterLayout,
    AnswerStyles,
    Example,
    LossOutputs,
    Model,
    Reader,
    Score,
    ShardedTensors,
    Task,
    Training,
)
from dgg_ray.core.rng import make_rng, permutation, uniform
from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean
from dgg_ray.core.strategy import (
    WHOLE_WEIGHTS,
    Fact,
    Needs,
    Protection,
    ReplayStrategy,
    StageContext,
    Strategy,
    remembered,
    replay_sample,
)
from dgg_ray.models._pretrained import Pretrained

__all__ = [
    "SPLITS",
    "WHOLE_WEIGHTS",
    "Adapter",
    "AdapterLayout",
    "AnswerStyles",
    "DggError",
    "Example",
    "Fact",
    "Fault",
    "LossOutputs",
    "MetricValue",
    "Model",
    "Needs",
    "Pretrained",
    "Protection",
    "Reader",
    "ReplayStrategy",
    "Score",
    "ScoreMatrix",
    "ShardedTensors",
    "StageContext",
    "StageError",
    "Strategy",
    "StudyError",
    "Task",
    "Training",
    "digest",
    "make_rng",
    "mean",
    "permutation",
    "remembered",
    "replay_sample",
    "uniform",
]
