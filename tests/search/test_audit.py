"""The audit of a stagewise search: dropped branches are finished, and luck is not taken for an error."""

import numpy as np
import pytest
from report_samples import ORDERS, small_study

from dgg_ray.analysis import optimism
from dgg_ray.analysis.optimism import audit_lead, audit_sentences
from dgg_ray.analysis.results import AuditedState, ComparisonSetup, SearchSummary
from dgg_ray.config.sections import Search, SearchParameter
from dgg_ray.core.rng import make_rng
from dgg_ray.search import comparison
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner


@pytest.mark.parametrize("seed", range(4))
def test_the_audit_finishes_branches_that_were_dropped(seed):
    space = {"strategy.alpha": SearchParameter(values=(0.0, 0.1, 0.3, 1.0), per_task=True)}
    search = Search(space, method="stagewise", audit_fraction=0.3, seed=seed)
    study = synthetic_study(5, DGG(buffer=20), search=search)
    store, method = MemoryStore(), comparison.make_search(study)
    reader = EvidenceReader(study, store)
    runner = SimulatedRunner.of(study, store)
    while (proposal := method.ask()) is not None:
        number, query = proposal
        for item in (item for chain in reader.missing(query) for item in chain):
            runner.run(item)
        method.tell(number, reader.evidence(query))
    assert method.audited
    assert all(method.answers[dropped.number] is not None for dropped in method.audited)
    assert all(method.proposed[dropped.number].depth == 5 for dropped in method.audited)


# -- what is said of it: d1 finished a dropped branch, ft stands for what was kept ---------------------


def said(*gaps, **terms):
    """Of branches with these gaps in points, block by block."""
    branches = tuple(
        AuditedState(2, "", "d1", "ft", 0.5, tuple(g / 100 for g in of), sum(of) > 0) for of in gaps
    )
    search = SearchSummary("stagewise", ("faa",), audited_states=branches)
    blocks = {"search_blocks": tuple((ORDERS[0], seed) for seed in range(len(gaps[0])))}
    return " ".join(audit_sentences(small_study(search=search, setup=ComparisonSetup(**{**blocks, **terms}))))


def test_one_block_cannot_tell_a_branch_that_looks_better_from_luck():
    text = said([1.2], [-3.0])
    assert "1 of them looked better than the best that was kept." in text
    assert "On average they ended 0.9 points (1 block) below it" in text
    assert (
        "ended 1.2 points (1 block) above it. It looked better, but one block cannot rule out chance." in text
    )
    assert "wrong" not in text


def test_a_lead_whose_interval_holds_0_may_be_luck():
    # gaps 1, 2, 3: s/√3 = 0.577; t(0.975, 2) = 4.303 and for two branches t(0.9875, 2) = 6.205
    text = said([1, 2, 3], [-9, -8, -9])
    assert (
        "ended 2.0 points (95 % CI of all 2 at once −1.6 to 5.6) above it. It looked better, which may"
        in text
    )
    assert "wrong" not in said([1, 2, 3], [-9, -8, -9])


def test_a_choice_was_wrong_where_the_interval_lies_above_0():
    # gaps 2, 3, 4: 3.0 ± 2.48 alone; among two 3.0 ± 3.58, which holds 0
    text = said([2, 3, 4])
    assert "For 1 of them that is more than chance: there the choice task by task was probably wrong." in text
    assert (
        "The best, dropped at task 2 of the orders, ended 3.0 points (95 % CI 0.5 to 5.5) above it." in text
    )
    assert "which may be chance" in said([2, 3, 4], [-1, -2, -3])
    # the one that is sure is shown, and not the one that is higher
    assert "For 1 of them" in (text := said([2.9, 3, 3.1], [-5, 5, 15]))
    assert "ended 3.0 points" in text


def test_no_bound_of_a_lead_lies_beyond_what_a_difference_can_be():
    # 96, 98, 88: 94 ± 4.303 · 5.29 / √3 = 13.1
    text = said((96, 98, 88))
    assert text.count("94.0 points (95 % CI 80.9 to 100.0)") == 2  # on average, and of the best
    assert "107" not in text


def test_blocks_that_begin_alike_count_as_one():
    orders = tuple((order, 0) for order in ("a > b > c", "a > c > b", "b > a > c"))
    # a's two blocks have the mean 2.5, b's one 4
    assert "ended 3.0 points (2 blocks: 2.5, 4.0) above it. It looked better, but two independent" in said(
        [3, 2, 4], search_blocks=orders
    )
    alike = said([3, 2], search_blocks=orders[:2])
    assert (
        "ended 2.5 points (1 block) above it. It looked better, but blocks that all begin alike cannot rule"
        in alike
    )


def test_blocks_that_are_alike_to_the_last_digit_prove_nothing():
    text = said([2, 2, 2])
    assert "ended 2.0 points (the same in all 3 blocks) above it. It looked better, but equal diff" in text
    assert "wrong" not in text


def test_held_out_blocks_of_the_comparison_say_what_became_of_the_lead():
    # on test d1 is 5/60 and 10/60 above ft
    held = {"final_blocks": tuple((order, 0) for order in ORDERS), "held_out": True}
    end = "On the test split of 2 held-out blocks, which took no part in the choice, it ended 12.5 points "
    assert f"{end}(2 blocks: 8.3, 16.7) above it." in said([1.2], **held)
    assert "no part" not in said([1.2])


@pytest.mark.parametrize(("kept", "blocks"), [(1, 3), (8, 4)])
def test_branches_that_are_no_better_are_rarely_called_better(kept, blocks):
    # 1,000 studies in which all settings are truly alike; of those kept the luckiest is what branches face
    rng, studies, audited = make_rng(kept, str(blocks), "audit"), 1000, 5
    noise = rng.normal(0, 0.02, (studies, kept + audited, blocks)) + rng.normal(0, 0.05, (studies, 1, blocks))
    best = noise[:, :kept].mean(axis=2).argmax(axis=1)
    gaps = noise[:, kept:] - noise[np.arange(studies), best][:, None]
    called = [
        any(optimism.is_significant_lead(audit_lead(g, audited), audited) for g in study if g.mean() > 0)
        for study in gaps
    ]
    assert np.mean(called) < 0.05
    assert np.mean((gaps.mean(axis=2) > 0).any(axis=1)) > 0.2  # looked better, in as many studies


def test_a_branch_that_is_much_better_is_called_better():
    gaps = make_rng(0, "", "audit").normal(0.1, 0.02, (200, 5))
    assert np.mean([optimism.is_significant_lead(audit_lead(g, 3), 3) for g in gaps]) > 0.95
