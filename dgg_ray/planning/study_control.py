"""Control of one study by a person, while it runs or after: check a decision, and record it in the store.

    record(store, "quickstart", {"kind": "stop_setting", "setting": "1a2b3c4d"}, by="ada")

A decision that makes no sense is refused with a StudyError, whoever takes it. One that is recorded takes
effect at once: a running driver carries it out within seconds, and every reader of the results heeds it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from dgg_ray.config import registry
from dgg_ray.config.decisions import (
    KINDS,
    Decision,
    is_part,
    pinned_settings,
    stopped_settings,
)
from dgg_ray.config.sections import Budget
from dgg_ray.config.study import Setting, Study
from dgg_ray.core.errors import Fault, StudyError, nearest_name
from dgg_ray.core.phrases import join_names
from dgg_ray.cost.budget import UNITS
from dgg_ray.cost.model import CostModel, unit_rates
from dgg_ray.search.base import SearchMethod
from dgg_ray.search.comparison import Comparison, final_chains
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import view_of

CONTENT = {  # kind of decision → the field that says what it is about
    "stop_setting": "setting",
    "stop_branch": "values",
    "pin": "setting",
    "unpin": "setting",
    "budget": "limits",
}


def record(store: StageStore, study_name: str, decision: Mapping[str, Any], by: str) -> Decision:
    """Check a decision about a study and record it; return it as recorded.

    decision: `kind` and what it is about. `setting`: an id, or the label of a compared setting. `values`:
        those that a branch shares, by their dotted paths. `limits`: by their names in the study's `budget`.
    by: who takes it.

    Raises StudyError where it makes no sense, and ResultsError where the store has no such study.
    """
    study = registry.stored_study(store, study_name)
    if faults := list(form_faults(decision, by)):
        raise StudyError(faults, study_name)
    asked = Decision(**decision)
    while True:
        number = registry.next_decision_number(store, study_name)  # before the decisions are read
        study = registry.with_decisions(study, store)
        checked = StudyState(study, view_of(store)).checked(asked)
        recorded = replace(checked, number=number, at=time.time(), by=by.strip())
        if registry.append_decision(store, study_name, recorded):
            return recorded


def form_faults(decision: Mapping[str, Any], by: str) -> Iterator[Fault]:
    """Find what is wrong with a decision whatever the study."""
    if not isinstance(by, str) or not by.strip():
        yield Fault("by", "must say who decides", repr(by))
    kind = str(decision.get("kind", ""))
    if kind not in CONTENT:
        yield Fault("kind", f"must be one of {', '.join(KINDS)}", repr(kind), nearest_name(kind, KINDS))
        return
    content = CONTENT[kind]
    wanted = str if content == "setting" else Mapping
    if not isinstance(decision.get(content), wanted) or not decision[content]:
        rule = "needs an id or a label" if content == "setting" else "needs at least one name with a value"
        yield Fault(content, rule, repr(decision.get(content, "")))
    for name in decision.keys() - {"kind", content}:
        yield Fault(name, f"is no part of a decision to {kind}", near=nearest_name(name, ["kind", content]))


@dataclass(frozen=True)
class StudyState:
    """A study as far as its store has it, to check one decision against. study: with its decisions."""

    study: Study
    store: StageStore

    def checked(self, decision: Decision) -> Decision:
        """The decision with everything that is recorded of it; StudyError where it makes no sense."""
        if decision.kind == "budget":
            faults = list(self.budget_faults(decision.limits))
        elif decision.kind == "stop_branch":
            faults = list(self.branch_faults(decision.values))
        else:
            setting = self.find_setting(decision.setting)
            decision = replace(decision, setting=setting, values=dict(self.settings[setting]))
            check = {"stop_setting": self.stop_faults, "pin": self.pin_faults, "unpin": self.unpin_faults}
            faults = list(check[decision.kind](setting))
        if faults:
            raise StudyError(faults, self.study.name)
        return replace(decision, answered=self.answered(decision))

    def answered(self, decision: Decision) -> dict[str, list[int]]:
        """The queries that were answered already, of those that the decision is about, by search."""
        found: dict[str, list[int]] = {}
        for label, search in self.searches.items():
            for number, evidence in sorted(search.answers.items()):
                setting = search.proposed[number].setting
                known = evidence is not None or number in search.stopped
                if known and decision.concerns(self.study.at(setting).id, setting, label):
                    found.setdefault(label, []).append(number)
        return found

    # -- what there is -----------------------------------------------------------------------------

    @cached_property
    def comparison(self) -> Comparison:
        reader = EvidenceReader(self.study, self.store)
        return Comparison.from_study(self.study, reader.fast_forward_past_failures)

    @cached_property
    def searches(self) -> dict[str, SearchMethod]:
        """The searches that have begun: those of baselines begin when the study's own is over."""
        own = self.comparison.search
        if own is None:
            return dict(self.comparison.baseline_searches)
        return {"": own, **(self.comparison.baseline_searches if own.finished else {})}

    @property
    def is_compared(self) -> bool:
        """Return whether all searches are over."""
        return all(search.finished for search in self.searches.values())

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """Id → the searched values of every setting that was proposed or is compared."""
        found: dict[str, Setting] = {}
        for search in self.searches.values():
            for query in search.proposed:
                found.setdefault(self.study.at(query.setting).id, query.setting)
        if self.is_compared:
            for runs in self.comparison.settings.values():
                found.setdefault(runs.id, {})
        return found

    @cached_property
    def unfinished(self) -> set[str]:
        """Ids of the settings of which something is left to train."""
        found: set[str] = set()
        for search in self.searches.values():
            waiting = {n for n in range(len(search.proposed)) if search.answers.get(n) is None}
            found |= {self.study.at(search.proposed[n].setting).id for n in waiting - search.stopped.keys()}
        if self.is_compared:
            for label, runs in self.comparison.settings.items():
                chains = final_chains({label: runs})
                if not all(self.store.has(item) for chain in chains for item in chain):
                    found.add(runs.id)
        return found

    def find_setting(self, name: str) -> str:
        """The id that an id or the label of a compared setting stands for."""
        labels = {label: runs.id for label, runs in self.comparison.settings.items() if self.is_compared}
        setting = labels.get(name, name)
        if setting not in self.settings:
            known = [*labels, *self.settings]
            rule = f"must be a setting that the study has proposed; it has {join_names(known, most=20)}"
            raise StudyError([Fault("setting", rule, repr(name), nearest_name(name, known))], self.study.name)
        return setting

    # -- what makes no sense -----------------------------------------------------------------------

    def stop_faults(self, setting: str) -> Iterator[Fault]:
        stopped, pinned = (of(self.study.data.decisions) for of in (stopped_settings, pinned_settings))
        winner = self.comparison.winner
        by_branch = (
            stop
            for search in self.searches.values()
            for number, stop in search.stopped.items()
            if self.study.at(search.proposed[number].setting).id == setting
        )
        before = stopped.get(setting)
        if setting not in self.unfinished:
            before = before or next(by_branch, None)
        if before:
            yield Fault("setting", f"is stopped already, by {before.by}", setting)
        elif self.is_compared and winner and winner.id == setting:
            rule = "must not be the chosen setting, which all others are compared with; stop the whole study"
            yield Fault("setting", rule, setting)
        elif setting not in self.unfinished and setting not in pinned:
            yield Fault("setting", "is finished already: nothing of it is left to be trained", setting)

    def branch_faults(self, values: Setting) -> Iterator[Fault]:
        search = self.comparison.search
        if search is None or search.search.method != "stagewise":
            method = search.search.method if search else "no search"
            rule = "belongs to a search by stagewise alone; stop a setting instead"
            yield Fault("kind", rule, f"stop_branch in a study with {method}")
            return
        stops = [d for d in self.study.data.decisions if d.kind == "stop_branch"]
        if search.finished:
            yield Fault("kind", "needs a search that goes on; this one is over", "stop_branch")
        elif before := next((d for d in stops if is_part(d.values, values)), None):
            yield Fault("values", f"are stopped already, by {before.by}", repr(dict(values)))
        elif not any(is_part(values, query.setting) for query in search.proposed):
            yield from self.value_faults(search, values) or [
                Fault("values", "must be those of a state that the search has tried", repr(dict(values)))
            ]

    def value_faults(self, search: SearchMethod, values: Setting) -> list[Fault]:
        """Find the values of a branch that the search has not tried."""
        faults = []
        paths = list(dict.fromkeys(path for query in search.proposed for path in query.setting))
        for path, value in values.items():
            tried = list(dict.fromkeys(q.setting[path] for q in search.proposed if path in q.setting))
            if path not in paths:
                faults.append(Fault(f"values.{path}", "is not searched here", near=nearest_name(path, paths)))
            elif value not in tried:
                rule = f"must be a value that was tried: {join_names([str(v) for v in tried], most=20)}"
                faults.append(Fault(f"values.{path}", rule, str(value)))
        return faults

    def pin_faults(self, setting: str) -> Iterator[Fault]:
        if before := pinned_settings(self.study.data.decisions).get(setting):
            yield Fault("setting", f"is pinned already, by {before.by}", setting)
            return
        whole = {
            self.study.at(query.setting).id
            for search in self.searches.values()
            for query in search.proposed
            if search.asks_for_all(query)
        }
        if setting not in whole:
            rule = "must be a whole setting of a search, with a value for every task; this one is "
            rule += "a state of some tasks, or stands in the comparison in any case"
            yield Fault("setting", rule, setting, nearest_name(setting, whole))

    def unpin_faults(self, setting: str) -> Iterator[Fault]:
        pinned = pinned_settings(self.study.data.decisions)
        if setting not in pinned:
            rule = f"must be pinned; the study has {join_names(list(pinned)) or 'no pinned setting'}"
            yield Fault("setting", rule, setting, nearest_name(setting, pinned))

    def budget_faults(self, limits: Mapping[str, Any]) -> Iterator[Fault]:
        names, rates = [f.name for f in fields(Budget)], unit_rates(self.study.workers)
        spent_s = sum(CostModel(self.study, self.store).spent.values())
        needs = {"gpu_hours": "workers.gpus", "money": "workers.price_per_hour"}
        for name, limit in limits.items():
            if name not in names:
                rule = f"is no limit; there are {', '.join(names)}"
                yield Fault(f"budget.{name}", rule, near=nearest_name(name, names))
            elif isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
                yield Fault(f"budget.{name}", "must be a number above 0", repr(limit))
            elif name in UNITS and UNITS[name] not in rates:
                yield Fault(
                    f"budget.{name}", f"needs {needs[name]}, which the study does not give", f"{limit:g}"
                )
            else:
                spent = spent_s * rates[UNITS[name]] if name in UNITS else self.store.size() / 1e9
                if limit < spent:
                    rule = f"must be at least what is spent already, {spent:.3g}"
                    yield Fault(f"budget.{name}", rule, f"{limit:g}")
