"""A study while its rules are checked."""

from __future__ import annotations

from dataclasses import dataclass

from dgg_ray.config.study import Study
from dgg_ray.core import error_records


@dataclass(frozen=True)
class Check:
    """A study that is checked.

    broken: its sections with faults of their own, in whose place a default stands.
    fetch: whether a model at a URL may be fetched, to look at its layers.
    """

    study: Study
    broken: frozenset[str]
    fetch: bool = True

    def intact(self, *sections: str) -> bool:
        return self.broken.isdisjoint(sections)

    @property
    def tasks_known(self) -> bool:
        return self.intact("readers")


def describe_problem(problem: Exception) -> str:
    """Return an exception of a plug-in, with its place in the plug-in's file."""
    place = error_records.plugin_location(problem)
    return f"{type(problem).__name__}: {problem}" + (f" ({place})" if place else "")
