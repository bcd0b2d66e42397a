"""The view of a search: its course, the parameters that matter, and what its audit found."""

from __future__ import annotations

from typing import Any

from dgg_ray.analysis.results import Results, SearchSummary
from dgg_ray.analysis.run_table import chosen_setting, setting_values
from dgg_ray.analysis.search_summary import hypervolumes, pareto_front
from dgg_ray.api import Outcome
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.report.figures.importance import explained_shares
from dgg_ray.report.figures.search import search_table
from dgg_ray.report.page_sections import search_sentences
from dgg_ray.service.views.open_branches import open_branches

NOTHING_SEARCHED = "Nothing was searched: the setting is the study's own."


def search(outcome: Outcome) -> dict[str, Any]:
    """The settings in the order proposed, the share of each parameter, and the sentences of the report.

    history: `values` and `objective` are null for a setting without a finished stage. states: of stagewise
    search and of its audit, rows of the figure `search`. pareto: ids of the settings on the front, where
    there are several objectives. branches: those of stagewise search that can be stopped (open_branches.py).
    """
    results = outcome.results
    found = results.search
    if found is None:
        lists = ("history", "importance", "states", "pareto", "branches")
        empty: dict[str, Any] = {name: [] for name in lists}
        return {"method": "", "objective": results.objective, **empty, "sentences": [NOTHING_SEARCHED]}
    optional = OptionalOutputs()
    sentences, audit = search_sentences(results, optional)
    several = len(found.objective) > 1
    states = search_table(found)
    return {
        "method": found.method,
        "objective": found.objective,
        "constraints": found.constraints,
        "finished": found.finished,
        "expected": found.expected_settings,
        "history": history(results, found),
        "importance": importance(results) if outcome.begun else [],
        "states": states[states["kind"] != "finished"],
        "branches": open_branches(outcome),
        "pareto": [candidate.setting for candidate in pareto_front(found)] if several else [],
        "hypervolume": hypervolumes(found) if several else [],
        "sentences": [*sentences, *audit],
        "missing": optional.messages,
    }


def history(results: Results, found: SearchSummary) -> list[dict[str, Any]]:
    """The settings in the order proposed; objective: the mean of each, over the finished blocks."""
    values = setting_values(results)[list(results.parameters)].to_dict("index")
    return [
        {
            "number": number,
            "setting": candidate.setting,
            "values": values.get(candidate.setting),
            "objective": candidate.mean_objectives or None,
            "violations": candidate.violations,
            "state": candidate.state,
            "blocks": len(candidate.block_values),
            "chosen": candidate.setting == chosen_setting(results),
        }
        for number, candidate in enumerate(found.candidates)
    ]


def importance(results: Results) -> list[dict[str, Any]]:
    """The share of the variance of the headline metric that each parameter explains alone, highest first."""
    return [
        {"parameter": row["name"], "share": row["value"], "low": row["low"], "high": row["high"]}
        for row in explained_shares(results).to_dict("records")
    ]
