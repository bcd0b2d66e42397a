"""The tables of the findings: seeds are the replicates on fixed orders, and p values are adjusted by Holm."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

SPEC = spec_from_file_location("findings", Path(__file__).parents[1] / "scripts" / "findings.py")
findings = module_from_spec(SPEC)
SPEC.loader.exec_module(findings)

LABELS = {"dgg": "d", "joint": "j", "replay": "r", "l2sp": "s"}


def table(own=False):
    """Return a run table of two orders × three seeds; own: each order has its own three seeds.

    One joint run of a seed serves both orders.
    """
    faa = {"d": (0.5, 0.6, 0.4, 0.7, 0.8, 0.6), "j": (0.8, 0.9, 0.9) * 2, "r": (0.5, 0.5, 0.4, 0.6, 0.7, 0.6)}
    rows = [
        [setting, order, seed + 3 * own * (order == "ba"), setting == "j", score, score, score]
        for setting, scores in {**faa, "s": faa["d"]}.items()
        for (order, seed), score in zip([(o, s) for o in ("ab", "ba") for s in range(3)], scores, strict=True)
    ]
    return pd.DataFrame(rows, columns=["setting", "order", "seed", "together", *findings.METRICS])


def row(runs, pair):
    (line,) = [line for line in findings.contrasts(runs, LABELS, "faa") if line.startswith(f"| {pair} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_joint_run_that_serves_both_orders_is_one_observation():
    # by seed over both orders: dgg 0.6, 0.7, 0.5 minus joint 0.8, 0.9, 0.9: -0.2, -0.2, -0.4, on 2 degrees
    gap, p, _, seeds = row(table(), "dgg − joint")
    mean, half = -0.8 / 3, stats.t.ppf(0.975, 2) * 0.2 / 3
    assert gap == f"{100 * mean:.1f} [{100 * (mean - half):.1f}, {100 * (mean + half):+.1f}]"
    assert float(p) == pytest.approx(2 * stats.t.sf(abs(mean) / (0.2 / 3), 2), abs=1e-3)
    assert seeds == "3"
    # t ends at 86.7 ± 14.3; its logit at logit 0.867 ± 0.143 / (0.867 · 0.133) = 1.87 ± 1.24, the lower 0.653
    assert findings.scores(table(), {"joint": "j"})[2].count("86.7 [65.3, 100.0]") == 3


def test_no_bound_of_a_difference_exceeds_its_range():
    apart = table().assign(faa=[1.0, 1.0, 0.8] * 2 + [0.0, 0.2, 0.0] * 6)
    # by seed 1, 0.8 and 0.8: by t 86.7 ± 28.7
    assert row(apart, "dgg − joint")[0] == "+86.7 [+58.0, +100.0]"


def test_seeds_of_each_order_s_own_are_separate_observations():
    # dgg - replay: 0, 0.1, 0 and 0.1, 0.1, 0: within orders 2 · 2/300 on 4 degrees, s² = (1/300 + 1/300) / 12
    gap, _, _, seeds = row(table(own=True), "dgg − replay")
    half = stats.t.ppf(0.975, 4) * (2 / 300 / 12) ** 0.5
    assert gap == f"+5.0 [{100 * (0.05 - half):+.1f}, {100 * (0.05 + half):+.1f}]"
    assert seeds == "6"


def test_p_values_are_adjusted_over_the_pairs_and_equal_scores_have_none():
    (_, joint, after, _), (_, replay, last, _) = row(table(), "dgg − joint"), row(table(), "dgg − replay")
    first, second = sorted([float(joint), float(replay)])
    assert float(min(after, last)) == pytest.approx(min(2 * first, 1), abs=2e-3)
    assert float(max(after, last)) == pytest.approx(max(2 * first, second), abs=2e-3)
    assert row(table(), "dgg − l2sp") == ["+0.0", "nan", "nan", "3"]
