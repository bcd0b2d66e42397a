"""Decisions of a person about one study, taken while it runs or after: stop, pin, another budget.

    stop_setting    no stage is trained any more for this setting alone
    stop_branch     the same for all that continues from a state of the stagewise search
    pin             the setting is evaluated to the end and stands in the comparison under a label of its own
    unpin           takes a pin back
    budget          limits in place of those of the study's `budget`

What a search proposes depends on what it was told, so a decision also says what it was told before:
`answered` lists the queries about the setting or branch that had their evidence at that moment, whatever a
running driver knew of it. To these the decision does not apply. Every later query about a stopped setting or
branch is answered with no evidence. So the proposals are a function of the study, the store and the decisions
in their order, and a study that goes on, or is opened, is where the running one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dgg_ray.config.sections import Budget, Value, name_of
from dgg_ray.core.phrases import join_names

Kind = Literal["stop_setting", "stop_branch", "pin", "unpin", "budget"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STOPS = ("stop_setting", "stop_branch")


@dataclass(frozen=True)
class Decision:
    """One decision, as the store keeps it.

    number: 1 for the first decision about the study. at: seconds since 1970. by: who took it.
    setting: id of the setting that is stopped, pinned or unpinned.
    values: the searched values of that setting; of a branch, those that all of it shares.
    limits: of a budget, by their names in the study's `budget`.
    answered: label of a baseline with a search of its own, or "" for the study's search → numbers of the
        queries that were answered before, among those that the decision is about.
    """

    kind: Kind
    number: int = 0
    at: float = 0.0
    by: str = ""
    setting: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    answered: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Decision:
        """The decision in a document; fields that a later version added are left out."""
        known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        return cls(**known)

    def as_json(self) -> dict[str, Any]:
        """The fields that this kind of decision has."""
        content: dict[str, Any] = {"kind": self.kind, "number": self.number, "at": self.at, "by": self.by}
        own = {"setting": self.setting, "values": self.values, "limits": self.limits}
        content |= {name: value for name, value in own.items() if value}
        if self.kind != "budget":
            content["answered"] = {label: list(numbers) for label, numbers in self.answered.items()}
        return content

    @property
    def deed(self) -> str:
        """The decision in the words that follow a name: `stopped setting 1a2b3c4d`."""
        match self.kind:
            case "budget":
                return f"set the budget to {Budget(**self.limits)}"
            case "stop_branch":
                values = [f"{name_of(path)} = {value}" for path, value in self.values.items()]
                return f"stopped the branch with {join_names(values)}"
        verb = {"stop_setting": "stopped", "pin": "pinned", "unpin": "unpinned"}[self.kind]
        return f"{verb} setting {self.setting}"

    def concerns(self, setting: str, values: Mapping[str, Value], label: str) -> bool:
        """Return whether it is about queries of a setting in a search; a branch is of the study's own search.

        setting, values: id and searched values of the setting. label: of the search.
        """
        if self.kind == "stop_branch":
            return not label and is_part(self.values, values)
        return self.kind != "budget" and setting == self.setting


def is_part(part: Mapping[str, Value], values: Mapping[str, Value]) -> bool:
    """Return whether a setting has all the values of a part."""
    return all(path in values and values[path] == value for path, value in part.items())


def stopping(decisions: Iterable[Decision]) -> Decision | None:
    """The stop that is in force after these decisions, all about one query; a later pin ends it."""
    stop: Decision | None = None
    for decision in decisions:
        if decision.kind in STOPS:
            stop = decision
        elif decision.kind == "pin":
            stop = None
    return stop


def pinning(decisions: Iterable[Decision]) -> Decision | None:
    """The pin that is in force after these decisions, all about one setting; a later stop ends it."""
    pin: Decision | None = None
    for decision in decisions:
        if decision.kind == "pin":
            pin = decision
        elif decision.kind != "budget":
            pin = None
    return pin


def pinned_settings(decisions: Iterable[Decision]) -> dict[str, Decision]:
    """Id → the pin, of the settings that are pinned now, in the order of their pins."""
    pins: dict[str, Decision] = {}
    for decision in decisions:
        if decision.setting:
            pins.pop(decision.setting, None)
        if decision.kind == "pin":
            pins[decision.setting] = decision
        elif decision.kind == "stop_branch":
            pins = {key: pin for key, pin in pins.items() if not is_part(decision.values, pin.values)}
    return pins


def stopped_settings(decisions: Iterable[Decision]) -> dict[str, Decision]:
    """Id → the stop, of the settings that were stopped one by one and not pinned since."""
    stops: dict[str, Decision] = {}
    for decision in decisions:
        if decision.kind in ("stop_setting", "pin"):
            stops.pop(decision.setting, None)
        if decision.kind == "stop_setting":
            stops[decision.setting] = decision
    return stops


def pinned_label(setting: str) -> str:
    """The label of a pinned setting in the comparison."""
    return f"pinned {setting}"
