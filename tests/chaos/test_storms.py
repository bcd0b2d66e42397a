"""Hundreds of deaths on a simulated cluster, with the real work queue, searches and stage tree."""

import random
from collections import Counter
from dataclasses import replace
from heapq import heapify

import pytest

from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.execution.work_queue import WorkQueue
from dgg_ray.search.comparison import Comparison
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import SimulatedCluster
from dgg_ray.testing.synthetic_study import synthetic_study

RETRIES = 1000  # no stage is given up for being unlucky


class DriverDiedError(Exception):
    pass


class Storm(SimulatedCluster):
    """A cluster on which something dies before about every second end of a stage.

    begun: how often each stage was assigned; killed: deaths of each kind, over all drivers.
    """

    def __init__(self, study, groups, store, chance, begun, killed, rate=0.5):
        super().__init__(study, groups, store)
        self.queue = WorkQueue(store, RETRIES)
        self.chance, self.begun, self.killed, self.rate = chance, begun, killed, rate

    def duration(self, item):
        if self.store.missing(item) is None:  # otherwise only evaluations are missing
            self.begun[item.key] += 1
        return super().duration(item)

    def step(self):
        if self.running and self.chance.random() < self.rate:
            self.strike(self.chance.choices(["worker", "broker", "driver"], [6, 3, 1])[0])
        return super().step()

    def strike(self, kind):
        self.killed[kind] += 1
        if kind == "driver":
            self.killed["in flight"] += len(self.running)
            raise DriverDiedError
        if kind == "worker":
            self.killed["in flight"] += 1
            _, _, group, _ = self.running.pop(self.chance.randrange(len(self.running)))
            heapify(self.running)
            assert self.queue.group_lost(group) == []
            self.idle.append(group)  # its replacement
            return
        requested = [requested_item(self.queue, key) for key in self.waiting]
        self.queue = WorkQueue(self.store, RETRIES)  # it knows nothing
        for item in requested:  # clients that wait request again
            assert self.queue.request(item) == "queued"
        for _, key, group, _ in self.running:  # and heartbeats name the groups' items
            self.queue.heartbeat(group, key, (0, 1))
            assert self.queue.keys_of(group) == [key]


def requested_item(queue, key):
    """The item with the evaluations of all its requests."""
    entry = queue.entries[key]
    evaluations = entry.evaluations | queue.late_evaluations.get(key, {})
    return replace(entry.item, evaluations=tuple(evaluations.values()))


def run_through_storm(study, groups, seed):
    """(store, winner, begun, killed) of a study that is run again whenever its driver dies."""
    store, begun, killed, chance = MemoryStore(), Counter(), Counter(), random.Random(seed)
    while True:
        try:
            cluster = Storm(study, groups, store, chance, begun, killed)
            winner = search_and_compare(cluster)
            return store, winner, begun, killed
        except DriverDiedError:
            continue


def search_and_compare(cluster):
    compared = Comparison.from_study(cluster.study, cluster.run_search)
    cluster.execute(compared.chains)
    return compared.search.winner()


@pytest.mark.whole
@pytest.mark.parametrize("method", ["tpe", "stagewise"])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_dies_the_results_are_the_same_and_little_is_begun_twice(method, seed):
    space = {"strategy.alpha": SearchParameter(values=(0.0, 0.1, 0.3, 1.0), per_task=True)}
    study = synthetic_study(
        4,
        DGG(buffer=20),
        simulation=ResponseModel(seed=seed),
        orders=Orders("random", count=3),
        search=Search(space, method=method, trials=12),
        protocol=Protocol(baselines=("constant", "replay", "joint")),
    ).simulated()
    calm = SimulatedCluster(study, 3)
    expected = search_and_compare(calm)
    store, winner, begun, killed = run_through_storm(study, 3, seed)

    assert winner == expected
    assert store.scores == calm.store.scores  # every score of every stage
    assert store.records.keys() == calm.store.records.keys()
    assert sum(begun.values()) - len(begun) <= killed["in flight"]
    deaths = {kind: killed[kind] for kind in ("worker", "broker", "driver")}
    assert min(deaths.values()) >= 1
    assert sum(deaths.values()) >= 30  # eight such studies: some hundreds
