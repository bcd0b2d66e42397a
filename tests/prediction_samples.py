"""Results with predictions written by hand."""

from dataclasses import dataclass, field

import pandas as pd

from dgg_ray.analysis.predictions import PREDICTION_COLUMNS
from dgg_ray.analysis.results import CELL_COLUMNS, Results
from dgg_ray.core.interfaces import Example

ORDERS = ("a > b", "b > a")

# (order, stage, task, id) → the right answer, the model's, its score
ANSWERS = [
    ("a > b", 0, "a", "a1", "red", "red", 1.0),
    ("a > b", 0, "a", "a2", "red", "red", 1.0),
    ("a > b", 0, "a", "a3", "blue", "red", 0.0),
    ("a > b", 1, "a", "a1", "red", "two", 0.0),  # lost
    ("a > b", 1, "a", "a2", "red", "red", 1.0),
    ("a > b", 1, "a", "a3", "blue", "two", 0.0),  # never right
    ("a > b", 1, "b", "b1", "two", "one", 0.0),  # wrong, and b is the last task
    ("b > a", 0, "b", "b1", "two", "two", 1.0),
    ("b > a", 1, "b", "b1", "two", "red", 0.0),  # lost
    ("b > a", 1, "a", "a1", "red", "red", 1.0),
    ("b > a", 1, "a", "a2", "red", "two", 0.0),  # a is the last task here
    ("b > a", 1, "a", "a3", "blue", "two", 0.0),
]


@dataclass
class StoredArchive:
    """Stand in for the archive of a study: the stored answers, and the examples that can still be read."""

    is_local: bool = True
    pictures: dict[str, dict[str, Example]] = field(default_factory=dict)

    def predictions(self, runs, split) -> pd.DataFrame:
        wanted = {order for _, order, _ in runs}
        rows = [
            ["d1", "dgg", order, 0, stage, order.split(" > ")[stage], task, split, name, *answer]
            for order, stage, task, name, *answer in ANSWERS
            if order in wanted and split == "test"
        ]
        return pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))

    def examples(self, task, split):
        return self.pictures.get(task, {})


def results_with_predictions(**archive) -> Results:
    rows = [
        dict(
            zip(
                CELL_COLUMNS,
                ["d1", "dgg", order, 0, t, tasks[t], evaluation, "test", 0.5, 3, 0.0],
                strict=True,
            )
        )
        for order in ORDERS
        for tasks in [order.split(" > ")]
        for t in range(2)
        for evaluation in tasks[: t + 1]
    ]
    results = Results("small", "", pd.DataFrame(rows), (), ("faa",), "d1", {}, [], pd.DataFrame())
    object.__setattr__(results, "archive", StoredArchive(**archive))
    return results
