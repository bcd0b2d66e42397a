"""Carrying out what people decide about a study while it runs.

A new decision interrupts the executor: nothing more is started, and the stages in training end normally.
Then the driver replays its search with the decision, as a resumed study does, and asks for what is needed
now. So a running study does what it would do if it were stopped and run again, and its worker groups stay
warm.

A stage in training is not ended, because other settings may share it, and because what it has cost is spent.
"""

from __future__ import annotations

import logging
import threading
from typing import Self

from dgg_ray.config import registry
from dgg_ray.config.study import Study
from dgg_ray.core import event_log
from dgg_ray.core.errors import error_record
from dgg_ray.cost import budget
from dgg_ray.execution.executor import StageExecutor
from dgg_ray.search.comparison import comparison_chains
from dgg_ray.storage.stage_store import StageStore

LOOK_EVERY_S = 5.0  # a listing of an object store costs money
END_S = 5.0  # longest wait at the end for a store that is out of reach


class DecisionWatch:
    """Looks for new decisions about a study every few seconds, and interrupts its executor.

    study: with the decisions that are carried out now.
    """

    def __init__(self, study: Study, store: StageStore, executor: StageExecutor) -> None:
        self.study, self.store, self.executor = study, store, executor
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._watch, name="decisions", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join(END_S)

    def _watch(self) -> None:
        while not self.ended.wait(LOOK_EVERY_S):
            self.look()

    def look(self) -> bool:
        """Interrupt the executor if there are new decisions; return whether it is."""
        with self.lock:
            try:
                if registry.with_decisions(self.study, self.store) is not self.study:
                    self.executor.interrupt()
            except Exception as problem:  # the next look may succeed, else the next run
                event_log.log_error("decisions not read", error_record(problem), level=logging.WARNING)
            return self.executor.interrupted

    def take_up(self) -> Study:
        """Let the executor go on with all decisions that there are; return the study with them."""
        with self.lock:
            known = len(self.study.data.decisions)
            self.study = registry.with_decisions(self.study, self.store)
            for decision in self.study.data.decisions[known:]:
                event_log.log_event("decision", content=decision.as_json())
                self.executor.display.say(f"{decision.by} {decision.deed}")
            self.executor.resume(budget.make_tracker(self.study, self.store, comparison_chains))
            return self.study
