"""The stage tree of a study: what its settings share, and how far each stage is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dgg_ray.analysis.archive import Archive
from dgg_ray.api import Outcome
from dgg_ray.core.stage import Stage
from dgg_ray.execution import progress

MAX_NODES = 5_000
ID = 16  # hex digits of a stage's key that name its node; errors and logs show the first 8 of these
FINISHED, RUNNING, FAILED, MISSING = STATES = ("finished", "running", "failed", "missing")
Steps = tuple[int | None, ...]  # done, and in all
NO_STEPS: Steps = (None, None)


@dataclass
class Node:
    """A stage with the settings whose runs have it. runs: how many of them."""

    stage: Stage
    settings: dict[str, None] = field(default_factory=dict)
    runs: int = 0

    @property
    def depth(self) -> int:
        """The number of tasks trained before it."""
        return len(self.stage.earlier)


def tree(outcome: Outcome) -> dict[str, Any]:
    """Every stage that the study has requested so far, once, with the settings that share it.

    nodes: parents before children. A node with `count` stands for that many stages of one depth and task:
    depths beyond MAX_NODES nodes are summed up so, and `note` says it. counts: stages by state. missing is
    a stage that has not ended; one of a pruned setting may never be trained. shared: the number of runs that
    have the stage, or one of those that the node stands for.
    """
    archive = outcome.results.archive
    if archive is None:
        return {"nodes": [], "counts": dict.fromkeys(STATES, 0), "note": ""}
    nodes = merged(archive)
    steps = running_steps(outcome)
    finished, failed = archive.store.finished_keys(), archive.store.failed_keys()

    def state(stage: Stage) -> str:
        if str(stage) in steps:
            return RUNNING
        if stage.key in failed:
            return FAILED
        return FINISHED if stage.key in finished else MISSING

    states = {key: state(node.stage) for key, node in nodes.items()}
    counts = dict.fromkeys(STATES, 0) | Counter(states.values())
    errors = {failure["stage"]: failure for failure in outcome.results.failures}
    shown = shown_depths(node.depth for node in nodes.values())
    rows = [
        node_row(node, states[key], steps.get(str(node.stage)), errors.get(key[:8]))
        for key, node in nodes.items()
        if node.depth < shown
    ]
    deeper = {key: node for key, node in nodes.items() if node.depth >= shown}
    note = ""
    if deeper:
        note = (
            f"The tree has {len(nodes)} stages. Those after {shown} trained task{'s' * (shown != 1)} are "
            "summed up by depth and task."
        )
    rows = sorted(rows, key=lambda row: row["depth"])
    return {"nodes": rows + summed_rows(deeper, states), "counts": counts, "note": note}


def merged(archive: Archive) -> dict[str, Node]:
    """Stage key → its node, over all runs that the study has requested."""
    nodes: dict[str, Node] = {}
    for (setting, _, _), (_, run) in archive.runs.items():
        for stage in run.stages:
            node = nodes.setdefault(stage.key, Node(stage))
            node.settings[setting] = None
            node.runs += 1
    return nodes


def running_steps(outcome: Outcome) -> dict[str, Steps]:
    """The stages that run now, as their texts, with their steps."""
    running = progress.read_live(outcome.out)["running"]
    return {stage["stage"]: tuple(stage.get("steps") or NO_STEPS) for stage in running}


def shown_depths(depths: Iterable[int]) -> int:
    """Return how many depths, from the root, have no more than MAX_NODES nodes in all."""
    counts, total = Counter(depths), 0
    for depth in range(max(counts, default=-1) + 1):
        total += counts[depth]
        if total > MAX_NODES:
            return depth
    return len(counts)


def node_row(
    node: Node,
    state: str,
    steps: Steps | None,
    failure: Mapping[str, Any] | None,
) -> dict[str, Any]:
    stage = node.stage
    done, total = steps or NO_STEPS
    return {
        "id": stage.key[:ID],
        "parent": stage.parent.key[:ID] if stage.parent else None,
        "task": stage.task,
        "seed": stage.seed,
        "depth": node.depth,
        "state": state,
        "settings": list(node.settings),
        "shared": node.runs,
        "step": done,
        "steps": total,
        "error": f"{failure['error']}: {failure['message']}" if failure else None,
    }


def summed_rows(nodes: Mapping[str, Node], states: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each depth and task, with the number of stages by state."""
    groups: dict[tuple[int, str], list[str]] = {}
    for key, node in nodes.items():
        groups.setdefault((node.depth, node.stage.task), []).append(key)
    rows = []
    for (depth, task), keys in sorted(groups.items()):
        counts = Counter(states[key] for key in keys)
        runs = sum(nodes[key].runs for key in keys)  # a run has one stage of each depth
        row = {"id": f"{depth}/{task}", "parent": None, "task": task, "seed": None, "depth": depth}
        row["state"] = next(state for state in (FAILED, RUNNING, MISSING, FINISHED) if counts[state])
        row |= {"settings": [], "shared": runs, "step": None, "steps": None, "error": None}
        rows.append(row | {"count": len(keys), "states": dict(counts)})
    return rows
