"""The audit of a stagewise search: dropped branches are finished, whichever place they were dropped at."""

import pytest

from dgg_ray import judge, methods
from dgg_ray.sections import Knob, Search
from dgg_ray.simulate import MemoryStore, Simulated, imagined
from dgg_ray.strategies.dgg import DGG


@pytest.mark.parametrize("seed", range(4))
def test_the_audit_finishes_branches_that_were_dropped(seed):
    space = {"strategy.alpha": Knob(values=(0.0, 0.1, 0.3, 1.0), per_task=True)}
    search = Search(space, method="stagewise", audit=0.3, seed=seed)
    study = imagined(5, DGG(buffer=20), search=search)
    store, method = MemoryStore(), methods.method(study)
    shop = Simulated.of(study, store)
    while (proposal := method.ask()) is not None:
        number, probe = proposal
        for work in (work for chain in judge.needs(study, store, probe) for work in chain):
            shop.obtain(work)
        method.tell(number, judge.evidence(study, store, probe))
    assert method.audited
    assert all(method.told[dropped.number] is not None for dropped in method.audited)
    assert all(method.proposed[dropped.number].depth == 5 for dropped in method.audited)
