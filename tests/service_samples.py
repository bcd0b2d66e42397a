"""Small studies for the service: simulated ones at several moments of their run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import dgg_ray
from dgg_ray import Outcome, Study, load_study, run_study
from dgg_ray.config import registry
from dgg_ray.report import page
from dgg_ray.service import views
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.training.simulated_runner import SimulatedRunner

SIZE = {"train": 12, "validation": 10, "test": 10}
TASKS = [{"name": name, "reader": "embedded", **SIZE} for name in ("words", "charts", "digits")]
STUDY: dict[str, Any] = {
    "name": "toy",
    "question": "Which α?",
    "model": "embedded",
    "tasks": TASKS,
    "strategy": {"name": "dgg", "alpha": 0.3, "buffer": 4},
    "training": {"batch_size": 8, "learning_rate": 5e-3},
    "orders": [["words", "charts", "digits"], ["digits", "charts", "words"]],
    "seeds": [0, 1],
    "search": {"space": {"strategy.alpha": [0, 0.5, 1]}, "method": "grid"},
    "protocol": {"max_new_tokens": 2, "baselines": ["replay", "joint"]},
    "workers": {"engine": "simulated"},
}


def sample(**changes: Any) -> Study:
    """The simulated study with other sections; None leaves one out."""
    return load_study({key: value for key, value in {**STUDY, **changes}.items() if value is not None})


def run(study: Study, out: Path, items: int | None = None) -> Outcome:
    """Run a study, up to a number of work items; None is all of them. It writes a report without figures."""
    original, left = SimulatedRunner.run, [items]

    def counted(self, item):
        if not isinstance(self.store, MemoryStore) and left[0] is not None:  # else it is a dry run
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
        original(self, item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figure_names", list)  # figures take seconds
        patch.setattr(SimulatedRunner, "run", counted)
        try:
            run_study(study, out, local=True, quiet=True)
        except KeyboardInterrupt:
            assert items is not None
    return dgg_ray.open(out)


def begin(study: Study, out: Path) -> None:
    """Save the study as a run does before its first stage."""
    with registry.StatePublisher(study, study.store(out), out):
        pass


def seen(outcome: Outcome, view: str, **params: Any) -> Any:
    """A view as a browser parses it: strict JSON, in which there is no NaN."""
    return parsed(views.view(outcome, view, params))


def parsed(data: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(data, parse_constant=refuse)


def numbers(found: Any) -> list[float]:
    """Every number in a view."""
    if isinstance(found, Mapping):
        return [n for value in found.values() for n in numbers(value)]
    if isinstance(found, list):
        return [n for value in found for n in numbers(value)]
    return [found] if isinstance(found, int | float) and not isinstance(found, bool) else []
