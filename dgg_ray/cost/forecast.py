"""The cost forecast at the start of each run, kept in DIR/forecast.json and compared with what was spent."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dgg_ray.config.registry import FORECAST
from dgg_ray.core.json_files import read_json, write_json
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.cost.model import CostForecast


class RunForecast(Protocol):
    """The predictions of `plan.Plan` about a run."""

    @property
    def to_train(self) -> int: ...
    @property
    def answers(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def cost_forecast(self) -> CostForecast: ...


class RunSpending(NamedTuple):
    """A run's forecast in one unit, and what the run spent of it.

    predicted: mean, low and high; None where nothing had been measured.
    """

    run: str
    unit: str
    predicted: dict[str, float] | None
    spent: float


def read_forecasts(out: Path) -> list[dict[str, Any]]:
    """Return an entry for each run that had work left, the first run first.

    at: the start of the run, in seconds since 1970. stages: how many were to be trained. exact: whether these
    were all known. remaining: unit → {mean, low, high}, None where nothing had been measured. spent: unit →
    what the study had spent by then. refused: stages that the budget refused.
    """
    return read_json(out / FORECAST) or []


@contextmanager
def record_forecast(out: Path, forecast: RunForecast, optional: OptionalOutputs) -> Iterator[dict[str, Any]]:
    """Record the forecast while the block runs; the block's changes to the entry are saved at its end."""

    def save() -> None:
        if forecast.to_train or forecast.answers:
            with optional.attempt("the forecast of this run", "is not kept"):
                write_json(out / FORECAST, entries)

    entry = {"at": time.time(), "stages": forecast.to_train, "exact": forecast.exact, "refused": 0}
    entry |= forecast.cost_forecast.as_json()
    entries = [*read_forecasts(out), entry]
    save()
    yield entry
    save()


def compare_forecasts(entries: list[dict[str, Any]], spent: Mapping[str, float]) -> list[RunSpending]:
    """Compare each run's forecast with its spending; `spent`: unit → what the study has spent until now."""
    ends = [entry["spent"] for entry in entries[1:]] + [spent]
    return [
        RunSpending(
            f"run {number}", unit, (entry["remaining"] or {}).get(unit), end[unit] - entry["spent"][unit]
        )
        for number, (entry, end) in enumerate(zip(entries, ends, strict=False), start=1)
        for unit in spent
        if unit in entry["spent"] and unit in end
    ]
