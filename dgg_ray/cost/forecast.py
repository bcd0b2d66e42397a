"""What was predicted at the start of each run, kept in DIR/forecast.json to be held against what came."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from dgg_ray.config.registry import FORECAST
from dgg_ray.core.fence import Fence
from dgg_ray.cost.model import Outlook
from dgg_ray.storage import manifest


class Forecast(Protocol):
    """What `plan.Plan` predicts of a run."""

    @property
    def to_train(self) -> int: ...
    @property
    def answers(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def outlook(self) -> Outlook: ...


def read(out: Path) -> list[dict[str, Any]]:
    """An entry for each run that had something to do, the first one first.

    at: when it began, in seconds since 1970; stages: to be trained; exact: whether these were all known;
    rest: unit → {mean, low, high} of what was left, None where nothing had been measured; spent: unit →
    by the study until then; refused: stages that the budget kept from being started.
    """
    return manifest.noted(out / FORECAST) or []


@contextmanager
def kept(out: Path, found: Forecast, fence: Fence) -> Iterator[dict[str, Any]]:
    """Keep the prediction while the block runs; what the block changes in the entry is kept at its end."""

    def keep() -> None:
        if found.to_train or found.answers:
            with fence("the forecast of this run", "is not kept"):
                manifest.note(out / FORECAST, entries)

    entry = {"at": time.time(), "stages": found.to_train, "exact": found.exact, "refused": 0}
    entry |= found.outlook.as_json()
    entries = [*read(out), entry]
    keep()
    yield entry
    keep()


def compared(
    entries: list[dict[str, Any]], spent: Mapping[str, float]
) -> list[tuple[str, str, dict[str, float] | None, float]]:
    """(run, unit, what was predicted for it or None, what it spent); spent: unit → by the study until now."""
    ends = [entry["spent"] for entry in entries[1:]] + [spent]
    return [
        (f"run {number}", unit, (entry["rest"] or {}).get(unit), end[unit] - entry["spent"][unit])
        for number, (entry, end) in enumerate(zip(entries, ends, strict=False), start=1)
        for unit in spent
        if unit in entry["spent"] and unit in end
    ]
