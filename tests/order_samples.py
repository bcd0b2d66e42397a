"""Results given as final scores by order."""

import pandas as pd

from dgg_ray.analysis.results import CELL_COLUMNS, Results

ORDERS = ("a > b > c", "b > c > a", "c > a > b")


def results_by_order(scores, parameters=(), evaluated=(), **changes) -> Results:
    """Return results from label → order → final scores on a, b, c, equal in every stage.

    Several tuples of scores are several seeds.
    """
    rows = [
        {
            **dict(zip(CELL_COLUMNS[:5], [label, label, order, seed, t], strict=True)),
            "trained_task": tasks[t],
            "eval_task": evaluation,
            "split": "validation",
            "n": 10,
            "seconds": 0.0,
            "score": dict(zip(sorted(tasks), final, strict=True))[evaluation],
            **{parameter: float(label[1:]) for parameter in parameters},
        }
        for label, orders in scores.items()
        for order, finals in orders.items()
        for seed, final in enumerate(finals if isinstance(finals[0], tuple) else [finals])
        for tasks in [order.split(" > ")]
        for t in range(len(tasks))
        for evaluation in tasks[: t + 1]
    ]
    first, *others = scores
    baselines = {} if evaluated else {label: label for label in others}
    table = pd.DataFrame(rows)[[*CELL_COLUMNS, *parameters]]
    costs = pd.DataFrame()
    return Results(
        "small", "", table, parameters, ("faa",), first, baselines, [], costs, evaluated=tuple(evaluated)
    )
