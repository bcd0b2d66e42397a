"""Studies without data, for tests and benchmarks: tasks are names and sizes, and stages are simulated."""

from __future__ import annotations

from typing import Any

from dgg_ray.config.study import Study, StudyData
from dgg_ray.core.interfaces import SPLITS
from dgg_ray.core.stage import TaskData
from dgg_ray.core.strategy import Strategy


def synthetic_study(
    tasks: int | tuple[str, ...], strategy: Strategy, size: int = 500, **sections: Any
) -> Study:
    """A simulated study of these tasks, by number or by name, with `size` examples in each split.

    sections: further fields of the study, such as `orders` or `search`.
    """
    names = tuple(f"task{i}" for i in range(tasks)) if isinstance(tasks, int) else tasks
    sizes: dict[str, int] = dict.fromkeys(SPLITS, size)
    data = {
        name: TaskData(name, {split: f"{name} {split}" for split in SPLITS}, sizes, "exact_match")
        for name in names
    }
    readers: dict[str, Any] = dict.fromkeys(names)
    model: Any = None
    study = Study("synthetic", model, readers, strategy, data=StudyData(data), **sections)
    return study.simulated()
