"""Views of scores: the score matrices of runs, the curves of a study, and what depends on the order."""

from __future__ import annotations

from typing import Any

import numpy as np

from dgg_ray.analysis.alpha_curves import tradeoff_rows, tradeoffs
from dgg_ray.analysis.order_sensitivity import order_tables
from dgg_ray.analysis.order_sentences import order_sensitivity_sentences
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    ScoredRun,
    chosen_setting,
    final_runs,
    final_split,
    scored_runs,
    setting_values,
    settings_by_label,
)
from dgg_ray.api import Outcome
from dgg_ray.report.figures.learning_along import mean_scores
from dgg_ray.report.figures.score_matrix import over_seeds
from dgg_ray.report.figures.stability_plasticity import AXES, points_and_curves
from dgg_ray.search.alpha_curve import SERIES
from dgg_ray.service.views.findings import label_of

MAX_MATRICES = 300  # of runs, and of their means, that are listed


def matrices(outcome: Outcome, setting: str = "", split: str = "") -> dict[str, Any]:
    """The score matrices R[t][i] of the compared methods, or of one setting, on the final blocks.

    matrices: of each run: {label, setting, order, seed, tasks, R}; a joint run fills its last row alone.
    means: of each setting and order, over its seeds, with the lowest and the highest score. outside: tasks
    that are only evaluated; the runs have their scores in R_outside.

    setting: its id or label; any setting with runs on the split. split: by default that of the comparison.
    """
    results = outcome.results
    if not outcome.begun:
        empty = {"settings": [], "tasks": [], "outside": [], "blocks": [], "matrices": [], "means": []}
        return {"split": results.setup.selection_split, **empty, "note": ""}
    split = outcome.split(split or None) if split else final_split(results)
    if setting:
        wanted = [outcome.setting(setting)]
        runs = [run for run in scored_runs(results, split) if run.setting in wanted]
    else:
        wanted = list(settings_by_label(results).values())
        runs = [run for run in final_runs(results, split) if run.setting in wanted]
    runs = sorted(runs, key=lambda run: wanted.index(run.setting))
    shown, means = runs[:MAX_MATRICES], mean_matrices(results, runs)
    note = ""
    if len(shown) < len(runs):
        note = f"The matrices of {len(shown)} of {len(runs)} runs are listed; name a setting for its own."
    return {
        "split": split,
        "settings": [{"label": label_of(results, s), "setting": s} for s in dict.fromkeys(wanted)],
        "tasks": sorted({task for run in runs for task in run.tasks}),
        "outside": results.evaluate_only,
        "blocks": [
            {"order": order, "seed": seed} for order, seed in dict.fromkeys((r.order, r.seed) for r in runs)
        ],
        "matrices": [matrix(results, run) for run in shown],
        "means": means[:MAX_MATRICES],
        "note": note,
    }


def matrix(results: Results, run: ScoredRun) -> dict[str, Any]:
    """A run's score matrix with its names."""
    outside = {"R_outside": run.scores.outside} if results.evaluate_only else {}
    return {
        "label": label_of(results, run.setting),
        "setting": run.setting,
        "order": run.order,
        "seed": run.seed,
        "tasks": run.tasks,
        "together": run.together,
        "R": run.scores.R,
        **outside,
    }


def mean_matrices(results: Results, runs: list[ScoredRun]) -> list[dict[str, Any]]:
    """Means over the seeds of each setting and order."""
    groups: dict[tuple[str, str], list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault((run.setting, run.order), []).append(run)
    found = []
    for (setting, order), members in groups.items():
        R, lowest, highest = over_seeds(members)
        names = {"label": label_of(results, setting), "setting": setting, "order": order}
        numbers = {"seeds": len(members), "R": R, "lowest": lowest, "highest": highest}
        found.append({**names, "tasks": members[0].tasks, **numbers})
    return found


def curves(outcome: Outcome) -> dict[str, Any]:
    """Stability against plasticity, the effect of each task's α, and the mean score along the sequence."""
    results = outcome.results
    if not outcome.begun:
        return {"stability_plasticity": {"points": [], "curves": []}, "alpha": [], "learning": []}
    return {
        "split": final_split(results),
        "selection_split": results.setup.selection_split,
        "stability_plasticity": stability_plasticity(results),
        "alpha": alpha_effects(results),
        "learning": learning(results),
    }


def stability_plasticity(results: Results) -> dict[str, Any]:
    """The points and curves of the figure of that name.

    kind: `setting` on the blocks of the search, `compared` the same on held-out blocks, `reference` joint
    training. front: whether the point is on the Pareto front.
    """
    points, curve = points_and_curves(results)
    rows = []
    for row in points.to_dict("records"):
        place = {name: row.get(name) for name in ("kind", "setting", "alpha", "other_values", "blocks")}
        label = row["label"] or label_of(results, row["setting"])
        chosen = row["setting"] == chosen_setting(results)
        rows.append({**place, "label": label, **point(row), "front": row["pareto"], "chosen": chosen})
    lines = [
        {
            "label": other_values,
            "points": [{"alpha": row["alpha"], **point(row)} for row in group.to_dict("records")],
        }
        for other_values, group in (curve.groupby("other_values", sort=True) if len(curve) else ())
    ]
    labels = {"x_label": "stability: final score on the earlier tasks"}
    labels["y_label"] = "plasticity: score on a task just trained"
    return {"points": rows, "curves": lines, **labels}


def point(row: dict[Any, Any]) -> dict[str, Any]:
    """Both coordinates of a point with their intervals."""
    return {
        f"{coordinate}{bound}": row.get(f"{axis}{bound}")
        for coordinate, axis in zip("xy", AXES, strict=True)
        for bound in ("", "_low", "_high")
    }


def alpha_effects(results: Results) -> list[dict[str, Any]]:
    """The effect of each task's α, a point for each α tried.

    mean, low, high: of the gain in the mean final score, against the best α; at most 0. new, old: the new
    task's score and the change of the old tasks, with bands. best: the α with the highest gain. open:
    whether the α cannot be told apart from it.
    """
    sentences = {row["task"]: sentence for row, sentence in tradeoff_rows(results)}
    effects = []
    for tradeoff in tradeoffs(results):
        points = []
        for row in tradeoff.points().to_dict("records"):
            series = {f"{name}{bound}": row[f"{name}{bound}"] for name in SERIES for bound in BOUNDS}
            gain = {"mean": row["gain"], "low": row["gain_low"], "high": row["gain_high"]}
            counts = {name: row[name] for name in ("best", "open", "stages", "blocks")}
            points.append({"alpha": row["alpha"], **gain, **series, **counts})
        effects.append({"task": tradeoff.task, "points": points, "text": sentences[tradeoff.task]})
    return effects


BOUNDS = ("", "_low", "_high")


def learning(results: Results) -> list[dict[str, Any]]:
    """The mean score over the tasks trained so far, a point for each number of tasks.

    together: joint training, which has its last point alone.
    """
    table, lines = mean_scores(results, final_split(results)), []
    labels = settings_by_label(results)
    for label in labels:
        rows = table[table["label"] == label]
        if rows.empty:
            continue
        points = [
            {"tasks": row["stage"] + 1, "score": row["score"], "low": row["low"], "high": row["high"]}
            for row in rows.to_dict("records")
        ]
        together = bool(np.all(rows["together"]))
        lines.append({"label": label, "setting": labels[label], "together": together, "points": points})
    return lines


def orders(outcome: Outcome) -> dict[str, Any]:
    """The findings about the order of the tasks, in sentences, and every table about it."""
    results = outcome.results
    if not outcome.begun or chosen_setting(results) not in setting_values(results).index:
        return {"sentences": [], "tables": {}}
    tables = {
        name: {"columns": list(table.columns), "rows": table} for name, table in order_tables(results).items()
    }
    return {"sentences": order_sensitivity_sentences(results), "tables": tables}
