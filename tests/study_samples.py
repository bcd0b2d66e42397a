"""A small study file, and the faults of changed versions."""

from dataclasses import replace

import pytest

from dgg_ray import Study
from dgg_ray.core.errors import StudyError

GOOD = """\
name: small
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: charts, reader: embedded, train: 12, validation: 10, test: 10}
strategy: {name: dgg, alpha: 0.2, buffer: 5}
orders: {design: random, count: 2}
seeds: [0, 3]
search:
  space:
    strategy.alpha: {per_task: [0, 0.5]}
    training.learning_rate: {low: 1e-4, high: 1e-2, log: true}
  trials: 4
"""


def faults(load, text: str) -> dict[str, str]:
    """Return the faults of a study text: path → message."""
    with pytest.raises(StudyError) as caught:
        load(text)
    return {fault.path: str(fault) for fault in caught.value.faults}


def with_data(study: Study, **changes) -> Study:
    """Return the study with other facts about its data."""
    return replace(study, data=replace(study.data, **changes))
