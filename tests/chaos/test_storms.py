"""Hundreds of deaths on a simulated cluster, with the real desk, searches and stage tree, in seconds."""

import random
from collections import Counter
from dataclasses import replace
from heapq import heapify

import pytest

from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter
from dgg_ray.config.simulation import Law
from dgg_ray.execution.work_queue import Desk
from dgg_ray.search import comparison, evidence
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import Cluster
from dgg_ray.training.simulated import MemoryStore, imagined

RETRIES = 1000  # no stage is given up for being unlucky


class DriverDied(Exception):
    pass


class Storm(Cluster):
    """A cluster on which something dies before about every second end of a stage.

    begun: how often each stage was handed out; killed: deaths of each kind, over all drivers.
    """

    def __init__(self, study, groups, store, chance, begun, killed, rate=0.5):
        super().__init__(study, groups, store)
        self.desk = Desk(store, RETRIES)
        self.chance, self.begun, self.killed, self.rate = chance, begun, killed, rate

    def takes(self, item):
        if self.store.missing(item) is None:  # else only exams are left to sit
            self.begun[item.key] += 1
        return super().takes(item)

    def step(self):
        if self.running and self.chance.random() < self.rate:
            self.strike(self.chance.choices(["worker", "broker", "driver"], [6, 3, 1])[0])
        return super().step()

    def strike(self, kind):
        self.killed[kind] += 1
        if kind == "driver":
            self.killed["in flight"] += len(self.running)
            raise DriverDied
        if kind == "worker":
            self.killed["in flight"] += 1
            _, _, group, _ = self.running.pop(self.chance.randrange(len(self.running)))
            heapify(self.running)
            assert self.desk.lost(group) == []
            self.idle.append(group)  # another in its place
            return
        asked = [wanted(self.desk, key) for key in self.waiting]
        self.desk = Desk(self.store, RETRIES)  # it knows nothing
        for item in asked:  # whoever waited asks again
            assert self.desk.need(item) == "queued"
        for _, key, group, _ in self.running:  # and fleets say what they have
            assert self.desk.heard(group, key, (0, 1))


def wanted(desk, key):
    """What those who wait for a stage asked for, together."""
    order = desk.orders[key]
    return replace(order.item, evaluations=tuple((order.evaluations | desk.later.get(key, {})).values()))


def outlived(study, groups, seed):
    """(store, begun, killed) of a study that was run again whenever its driver had died."""
    store, begun, killed, chance = MemoryStore(), Counter(), Counter(), random.Random(seed)
    while True:
        try:
            cluster = Storm(study, groups, store, chance, begun, killed)
            winner = conducted(cluster)
            return store, winner, begun, killed
        except DriverDied:
            continue


def conducted(cluster):
    search = cluster.pursue(comparison.make_search(cluster.study))
    more = {name: cluster.pursue(own) for name, own in comparison.baseline_searches(search).items()}
    final = comparison.compared_settings(cluster.study, search, more)
    cluster.obtain(evidence.final_works(final))
    return search.winner()


@pytest.mark.parametrize("method", ["tpe", "stagewise"])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_dies_the_results_are_the_same_and_little_is_begun_twice(method, seed):
    space = {"strategy.alpha": SearchParameter(values=(0.0, 0.1, 0.3, 1.0), per_task=True)}
    study = imagined(
        4,
        DGG(buffer=20),
        simulation=Law(seed=seed),
        orders=Orders("random", count=3),
        search=Search(space, method=method, trials=12),
        protocol=Protocol(baselines=("constant", "replay", "joint")),
    ).simulated()
    calm = Cluster(study, 3)
    expected = conducted(calm)
    store, winner, begun, killed = outlived(study, 3, seed)

    assert winner == expected
    assert store.found == calm.store.found  # every score of every stage
    assert store.records.keys() == calm.store.records.keys()
    assert sum(begun.values()) - len(begun) <= killed["in flight"]
    deaths = {kind: killed[kind] for kind in ("worker", "broker", "driver")}
    assert min(deaths.values()) >= 1
    assert sum(deaths.values()) >= 30  # eight such studies: some hundreds
