"""The command that controls a running study: arguments → a decision in the study's store."""

from __future__ import annotations

import getpass
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dgg_ray.cli_arguments import TUNNEL, Dashboard, Json, OnCluster, Results, ResultsStore, print_json


class Action(StrEnum):
    """An action of `control`."""

    STOP_SETTING = "stop-setting"
    STOP_BRANCH = "stop-branch"
    PIN = "pin"
    UNPIN = "unpin"
    BUDGET = "budget"


def control(
    out: Results,
    action: Annotated[
        Action | None, typer.Argument(metavar="[ACTION]", help="Without one, all decisions are shown.")
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WHAT]...", help="A setting's id or label; PATH=VALUE; LIMIT=NUMBER."),
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who decides.", show_default="you")] = None,
    cluster: OnCluster = False,
    dashboard: Dashboard = TUNNEL,
    store: ResultsStore = None,
    as_json: Json = False,
) -> None:
    """Stop a setting or a branch of a study, pin a setting, or change the budget, while it runs or after.

    `stop-setting ID` trains nothing more for that setting alone. `stop-branch PATH=VALUE …` does so for all
    that continues from a state of the search by stagewise. `pin ID` evaluates a setting to the end and takes
    it into the comparison; `unpin ID` takes that back. `budget LIMIT=NUMBER …` sets other limits.

    Example: `dgg-ray control out/quickstart stop-setting 1a2b3c4d`
    """
    from dgg_ray.config import registry
    from dgg_ray.planning import study_control

    place, name = store_and_name(out, dashboard if cluster else None, store)
    if action is None:
        decisions = registry.read_decisions(place, name)
        if as_json:
            print_json([decision.as_json() for decision in decisions])
        for decision in () if as_json else decisions:
            print(f"{decision.number}  {decision.by} {decision.deed}")
        return
    decision = study_control.record(place, name, parse_decision(action, what or []), by or getpass.getuser())
    if as_json:
        print_json(decision.as_json())
    else:
        print(f"decision {decision.number}: {decision.by} {decision.deed}")
        print("a run of the study that goes on carries it out within seconds; else the next run does")


def store_and_name(out: str, dashboard: str | None, store: str | None) -> tuple[Any, str]:
    """The store of a study and its name. out: its folder; with a cluster or a store, its name."""
    if dashboard or store:
        from dgg_ray.remote import submission

        return submission.store_of(out, dashboard, store), out
    from dgg_ray.config import saved_study

    folder = Path(out).expanduser().absolute()
    study = saved_study.require_saved_study(folder)
    return study.store(folder), study.name


def parse_decision(action: Action, what: list[str]) -> dict[str, Any]:
    """The decision that the arguments describe."""
    kind = action.replace("-", "_")
    if action in (Action.STOP_BRANCH, Action.BUDGET):
        values = dict(map(name_and_value, what))
        return {"kind": kind, "limits" if action == Action.BUDGET else "values": values}
    if len(what) != 1:
        raise typer.BadParameter(f"{action} needs one setting's id or label, got {len(what)}")
    return {"kind": kind, "setting": what[0]}


def name_and_value(text: str) -> tuple[str, Any]:
    """A number or a text under its name: `strategy.alpha.words=0.3`."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"needs NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
