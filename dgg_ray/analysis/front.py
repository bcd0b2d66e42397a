"""The Pareto set of a search with several objectives, and how it grew."""

from __future__ import annotations

from collections.abc import Iterator

from dgg_ray.analysis.results import Candidate, Searched
from dgg_ray.search.objective import fronts, hypervolume


def front(search: Searched) -> list[Candidate]:
    """Feasible settings that no other one dominates, the highest in the first objective first."""
    found = search.feasible()
    objectives = [c.objective for c in found]
    first = next(fronts(range(len(found)), objectives), [])
    return [found[i] for i in sorted(first, key=lambda i: objectives[i], reverse=True)]


def volumes(search: Searched) -> Iterator[tuple[int, int, float]]:
    """(settings judged, stages asked for, hypervolume of the feasible ones) after each setting judged."""
    points: list[tuple[float, ...]] = []
    for number, candidate in enumerate(search.of("judged"), start=1):
        points += [] if any(candidate.excess) else [candidate.objective]
        yield number, candidate.stages, hypervolume(points)
