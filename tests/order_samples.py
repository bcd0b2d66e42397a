"""Results that are given as final scores by order."""

import pandas as pd

from dgg_ray.analysis.results import CELL, Results

ORDERS = ("a > b > c", "b > c > a", "c > a > b")


def study(scores, knobs=(), tried=(), **changes) -> Results:
    """label → order → final scores on a, b, c (several tuples: one a seed), the same in every stage."""
    rows = [
        {
            **dict(zip(CELL[:5], [label, label, order, seed, t], strict=True)),
            "learned": tasks[t],
            "exam": exam,
            "split": "validation",
            "n": 10,
            "seconds": 0.0,
            "score": dict(zip(sorted(tasks), final, strict=True))[exam],
            **{knob: float(label[1:]) for knob in knobs},
        }
        for label, orders in scores.items()
        for order, finals in orders.items()
        for seed, final in enumerate(finals if isinstance(finals[0], tuple) else [finals])
        for tasks in [order.split(" > ")]
        for t in range(len(tasks))
        for exam in tasks[: t + 1]
    ]
    first, *others = scores
    rivals = {} if tried else {label: label for label in others}
    table = pd.DataFrame(rows)[[*CELL, *knobs]]
    costs = pd.DataFrame()
    return Results("small", "", table, knobs, ("faa",), first, rivals, [], costs, tried=tuple(tried))
