"""Sample stages, a sample strategy, and files to write and read; light, because child processes import it."""

from dataclasses import dataclass
from pathlib import Path

from dgg_ray.core.interfaces import Adapter, Training
from dgg_ray.core.stage import StageSettings, TaskData, stages_of_run
from dgg_ray.core.strategy import Strategy


@dataclass(frozen=True)
class Near:
    weight: float = 1.0


@dataclass(frozen=True)
class Far:
    weight: float = 1.0


@dataclass(frozen=True)
class Pulled(Strategy):
    """A strategy with a setting of one of two classes with equal fields."""

    pull: Near | Far = Near()


def some_stages(count=2):
    data = [
        TaskData(f"tâche {i}", {"train": f"digest {i}"}, {"train": 1}, "exact_match") for i in range(count)
    ]
    return stages_of_run(StageSettings("model", Adapter(), Training(), Strategy(), 0), data)


def weights(text):
    def fill(folder: Path):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "poids – 重み.txt").write_text(text)
        (folder / "empty").write_bytes(b"")

    return fill


def read_weights(folder):
    return (folder / "adapter" / "poids – 重み.txt").read_text()
