"""The results of a small study whose numbers can be worked out on paper."""

import dataclasses

import numpy as np
import pandas as pd

from dgg_ray.analysis.results import CELL_COLUMNS, Results

SIZES = {"a": 10, "b": 20, "c": 30}

ORDERS = ("a > b > c", "c > a > b")

SCORES = {  # setting → for each order the rows of R
    "d1": ([[0.8], [0.7, 0.6], [0.6, 0.5, 0.9]], [[0.9], [0.8, 0.7], [0.7, 0.6, 0.5]]),
    "d2": ([[0.8], [0.4, 0.7], [0.2, 0.5, 0.9]], [[0.9], [0.5, 0.8], [0.3, 0.4, 0.6]]),
    "ft": ([[0.8], [0.3, 0.8], [0.3, 0.4, 0.9]], [[0.9], [0.4, 0.8], [0.4, 0.3, 0.6]]),
    "jt": ([[], [], [0.8, 0.7, 0.9]], [[], [], [0.9, 0.8, 0.7]]),
}

STRATEGY = {"d1": "dgg", "d2": "dgg", "ft": "finetune", "jt": "joint"}

PARAMETERS = ("strategy.alpha", "strategy.buffer")

VALUES = {"d1": (0.25, 50), "d2": (0.125, 50), "ft": (np.nan, np.nan), "jt": (np.nan, np.nan)}


def small_study(splits=("validation", "test"), orders=ORDERS, settings=tuple(SCORES), **changes) -> Results:
    rows = [
        {
            "setting": setting,
            "strategy": STRATEGY[setting],
            "order": order,
            "seed": 0,
            "stage": t,
            "trained_task": "a + b + c" if setting == "jt" else tasks[t],
            "eval_task": evaluation,
            "split": split,
            "score": score,
            "n": SIZES[evaluation],
            "seconds": 1.5,
            **dict(zip(PARAMETERS, VALUES[setting], strict=True)),
        }
        for setting in settings
        for order, R in zip(ORDERS, SCORES[setting], strict=True)
        if order in orders
        for tasks in [order.split(" > ")]
        for t, scores in enumerate(R)
        for evaluation, score in zip(tasks, scores, strict=False)
        for split in splits
        if split == "validation" or setting != "d2"
    ]
    costs = pd.DataFrame(
        [["k1", "a", 0, 6, 3.0, 1.0, 100.0], ["k2", "b", 1, 2, 4.0, 2.0, 300.0]],
        columns=[
            "key",
            "trained_task",
            "depth",
            "runs",
            "train_seconds",
            "evaluation_seconds",
            "peak_memory_mb",
        ],
    )
    results = Results(
        name="small",
        question="Which α?",
        table=pd.DataFrame(rows)[[*CELL_COLUMNS, *PARAMETERS]],
        parameters=PARAMETERS,
        objective=("faa",),
        recommended="d1",
        baselines={"finetune": "ft", "joint": "jt"},
        failures=[],
        costs=costs,
        facts={"versions": {"torch": "2.9"}},
    )
    return dataclasses.replace(results, **changes)
