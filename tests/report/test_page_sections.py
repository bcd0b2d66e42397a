"""The sections state the blocks, seeds and trade-offs that were run."""

import dataclasses
from types import SimpleNamespace

import pytest
from order_samples import ORDERS as CYCLE
from order_samples import results_by_order
from prediction_samples import results_with_predictions

from dgg_ray.analysis.run_table import BLOCK
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.report.page_sections import constant_alpha_sentences
from dgg_ray.report.summary import MOST_ERRORS, blocks_sentence, describe_blocks, failure_sentences
from dgg_ray.report.wrong_answers import wrong_answers_section

ORDERS = ("a > b", "b > a")


def seeded(seeds, **methods):
    """Methods with a score in every block; seeds: order → its seeds."""
    results = results_by_order({name: {o: [(0.5, 0.6)] * 3 for o in ORDERS} for name in ("dgg", *methods)})
    table = results.table.copy()
    table["seed"] = [seeds[order][seed] for order, seed in table[BLOCK].itertuples(index=False)]
    return dataclasses.replace(results, table=table)


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (((0, 1, 2), (0, 1, 2)), "2 orders with 3 seeds"),
        (((0, 1, 2), (3, 4, 5)), "2 orders with 3 seeds each, none shared"),
    ],
)
def test_seeds_of_a_single_order_are_not_counted_as_shared(seeds, expected):
    assert describe_blocks(seeded(dict(zip(ORDERS, seeds, strict=True)))) == expected


def test_methods_have_the_same_blocks_only_if_all_finished_them():
    whole = seeded(dict.fromkeys(ORDERS, (0, 1, 2)), replay=True)
    same = (
        "All methods were trained and evaluated on the same blocks: 2 orders with 3 seeds, validation split."
    )
    assert blocks_sentence(whole, "validation") == same
    rows = whole.table
    last = (
        (rows["setting"] == "replay")
        & (rows["order"] == "b > a")
        & (rows["seed"] == 2)
        & (rows["stage"] == 1)
    )
    assert blocks_sentence(dataclasses.replace(whole, table=rows[~last]), "validation") == (
        "Not every method has finished every block (2 orders with 3 seeds, validation split). A difference "
        "covers the blocks that both methods have finished."
    )


def test_the_trade_of_a_constant_alpha_has_the_interval_of_its_differences():
    scores = {"s0": (0.5, 0.4, 0.3), "s1": (0.6, 0.6, 0.7)}  # of every task, by order: both metrics alike
    rows = {name: {o: (x,) * 3 for o, x in zip(CYCLE, of, strict=True)} for name, of in scores.items()}
    results = results_by_order(rows, parameters=("strategy.alpha",), evaluated=tuple(scores))
    # 10, 20 and 40 points: 23.3 ± 4.3027 · 15.3 / √3
    change = "by +23.3 points (95 % CI −14.6 to +61.3)"
    assert constant_alpha_sentences(results) == [
        f"With one α for all tasks, α = 1 instead of 0 changes stability {change} and plasticity {change}, "
        "over the blocks on which both were evaluated."
    ]


def test_a_run_in_which_a_task_came_last_is_not_counted_for_its_questions():
    # of two runs, a came last in one and b in the other: each question could be lost in one run
    (first, second, *_) = wrong_answers_section(results_with_predictions(), {}, OptionalOutputs()).sentences
    assert first.endswith("in at least one of 2 runs of dgg.")
    assert second.startswith("Runs in which the task came last are not counted on its cards")


def test_a_summary_quotes_a_few_errors_each_once_and_counts_the_others():
    failures = [
        {"error": "StageError", "trained_task": "a", "message": f"rule {i // 2}", "location": ""}
        for i in range(2 * (MOST_ERRORS + 2))
    ]
    first, *lines = failure_sentences(SimpleNamespace(failures=failures))
    assert first.startswith(f"{len(failures)} stages failed (StageError while training a).")
    quoted = [f"StageError: rule {i}" for i in range(MOST_ERRORS)]
    assert lines == [*quoted, "… and 2 other errors; the end of the report lists all"]
