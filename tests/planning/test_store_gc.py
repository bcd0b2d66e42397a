"""Garbage of a store is found, shown and removed; whatever its studies need stays."""

import json
import os
import time
from collections import Counter
from dataclasses import replace

import pytest
from marked import first_quick

from dgg_ray import cli, load_study
from dgg_ray.analysis.load import load_results
from dgg_ray.config import saved_study
from dgg_ray.config.sections import Output
from dgg_ray.core.errors import MissingTimestampsError
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution import driver
from dgg_ray.execution.session import RaySession
from dgg_ray.planning import store_gc
from dgg_ray.storage.backend import LocalBackend, folder_size
from dgg_ray.storage.leases import LeaseOwner
from dgg_ray.storage.manifest import manifest_name
from dgg_ray.storage.stage_store import StageStore, open_store

KB = 1000
STUDY = """\
name: NAME
model: embedded
tasks:
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: charts, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: digits, reader: embedded, train: 12, validation: 10, test: 10}
strategy: dgg
search: {method: grid, space: {strategy.alpha: ALPHAS}}
protocol: {max_new_tokens: 2, baselines: [finetune], evaluate: seen}
workers: {engine: simulated}
"""


@pytest.fixture()
def adapters(monkeypatch):
    """Give simulated stages an adapter of a hundred kilobytes."""
    publish = StageStore.publish

    def full(self, stage, record, fill):
        def adapter(folder):
            (folder / "adapter").mkdir()
            (folder / "adapter" / "weights").write_bytes(b"x" * 100 * KB)

        publish(self, stage, record, adapter)

    monkeypatch.setattr(StageStore, "publish", full)


@pytest.fixture()
def run(tmp_path, adapters, capsys):
    """Return a function: run a study with these values of α in one store, and return its results folder."""

    def run(alphas, name="one", store=tmp_path / "stages"):
        text = STUDY.replace("NAME", name).replace("ALPHAS", str(alphas))
        (tmp_path / "study.yaml").write_text(text + f"output: {{store: '{store}'}}\n")
        out = tmp_path / name
        optional = OptionalOutputs()
        study, stages = driver.prepare(load_study(tmp_path / "study.yaml"), out, True, optional)
        driver.run(study, stages, out, optional, local=True, session=RaySession(), quiet=True)
        capsys.readouterr()
        return out

    return run


@pytest.fixture()
def store(tmp_path):
    return open_store(tmp_path / "stages")


def aged(store, hours=2.0):
    """Make everything look as if written that long ago, and remove the leases, which have ended."""
    store.backend.remove_folder("leases")
    then = time.time() - 3600 * hours
    for place in store.backend.root.rglob("*"):
        os.utime(place, (then, then))


def keys(store):
    return {record["key"] for record in store}


@pytest.mark.whole
def test_a_study_needs_every_stage_that_it_requests_and_nothing_of_its_earlier_version(run, store, capsys):
    out = run([0.2, 0.9])
    earlier = keys(store)
    assert len(earlier) == 7  # a shared first stage, two of each α, two of the baseline
    aged(store)
    assert store_gc.find_garbage([out]).items == []

    run([0.2, 0.5])
    now = keys(store)
    assert len(now) == 9
    aged(store)
    before = load_results(out).table
    held = folder_size(store.backend.root)
    garbage = store_gc.find_garbage([out])
    stages = {item.key for item in garbage.items if item.kind == store_gc.STAGES}
    assert len(stages) == 2  # of 0.9
    assert stages < earlier
    assert garbage.bytes == 200 * KB  # and, when it goes, the records

    assert cli.main(["gc", str(out)]) == 0  # only shown
    assert "nothing was removed" in capsys.readouterr().out
    assert keys(store) == now

    assert cli.main(["gc", str(out), "--delete"]) == 0
    assert "freed" in capsys.readouterr().out
    assert keys(store) == now - stages
    assert held - folder_size(store.backend.root) >= garbage.bytes
    assert load_results(out).table.equals(before)
    assert store_gc.find_garbage([out]).items == []


def test_the_store_knows_what_its_other_studies_need(run, store, capsys):
    one, other = run([0.2], "one"), run([0.2, 0.7], "other")
    aged(store)
    everything = len(keys(store))
    for named in (["--store", store.url], [str(one)], [str(one), str(other)]):
        assert cli.main(["gc", *named, "--delete"]) == 0
        assert len(keys(store)) == everything

    assert cli.main(["gc", str(one), "--deleted-study", "other", "--delete"]) == 0
    assert len(keys(store)) == everything - 2
    assert len(load_results(one).table) > 0


@pytest.mark.whole
def test_a_store_with_stages_of_an_unknown_study_is_left_alone(run, store, capsys):
    one, other = run([0.2], "one"), run([0.2, 0.7], "other")
    aged(store)
    store.remove_document("studies/other/study.json")
    for named in ([str(one)], ["--store", store.url]):
        assert cli.main(["gc", *named, "--delete"]) == 1
        message = capsys.readouterr().err
        assert "StoreInUseError" in message
        assert "holds stages of other" in message
        assert "--deleted-study" in message
    assert store_gc.find_garbage([one, other]).items == []


@pytest.mark.whole
def test_two_versions_of_a_study_in_two_folders_are_both_kept(run, store, tmp_path):
    out = run([0.2], "one")
    old = tmp_path / "old"
    out.rename(old)
    new = run([0.7], "one")
    aged(store)
    assert store_gc.find_garbage([old, new]).items == []
    assert store_gc.find_garbage([old]).items == []  # the store knows the new one
    assert len([item for item in store_gc.find_garbage([new]).items if item.kind == store_gc.STAGES]) == 2


@pytest.mark.parametrize("content", first_quick([b"", b'{"content": {"raw": {}}}', b'{"content": {}}']))
def test_a_study_whose_document_cannot_be_read_may_need_everything(run, store, content, capsys):
    one, other = run([0.2], "one"), run([0.2, 0.7], "other")
    store.backend.write("studies/other/study.json.json", content)
    aged(store)
    assert cli.main(["gc", str(one), "--delete"]) == 1
    message = capsys.readouterr().err
    assert "what study 'other' needs cannot be read" in message
    assert "--deleted-study other" in message
    assert store_gc.find_garbage([one, other]).items == []
    assert len(store_gc.find_garbage([one], deleted=["other"]).items) == 2


def test_without_results_and_store_the_error_says_what_to_name(capsys):
    assert cli.main(["gc"]) == 1
    assert "name a study's results folder, or the store with --store" in capsys.readouterr().err


def test_objects_younger_than_an_hour_stay(run, store):
    out = run([0.2, 0.9])
    run([0.2])
    assert store_gc.find_garbage([out]).items == []
    aged(store, hours=0.9)
    assert store_gc.find_garbage([out]).items == []
    aged(store, hours=1.1)
    garbage = store_gc.find_garbage([out])
    assert len(garbage.items) == 2
    one, other = (item.prefix for item in garbage.items)
    evaluation = store.backend.list_names(f"{one}.")[1]
    os.utime(store.backend.root / evaluation)  # another driver evaluated it just now
    garbage.delete()
    assert evaluation in store.backend.list_names(one)
    assert store.backend.list_names(other) == []


def test_stages_that_a_driver_has_leased_stay(run, store):
    out = run([0.2, 0.9])
    run([0.2])
    aged(store)
    garbage = store_gc.find_garbage([out])
    one, other = (item.key for item in garbage.items)
    driver = LeaseOwner("another", "elsewhere", 1)
    assert store.acquire_lease(one, driver) is None
    assert [item.key for item in store_gc.find_garbage([out]).items] == [other]
    garbage.delete()
    assert one in keys(store)
    assert other not in keys(store)
    store.release_lease(one, driver)
    store_gc.find_garbage([out]).delete()
    assert one not in keys(store)
    aged(store)
    assert store.backend.list_names("leases/") == []


def test_useless_leftovers_go_and_useful_ones_stay(run, store):
    out = run([0.2])
    key, lost = sorted(keys(store))[:2]
    content = store.backend.read(manifest_name(lost))
    store.backend.remove(manifest_name(lost))  # quarantined; its evaluations and later failures are of use
    files = f"files/{lost}/{os.listdir(store.backend.root / 'files' / lost)[0]}"
    unknown, writing, dead = "f" * 64, "0" * 12, "1" * 12
    useless = {
        f"quarantined/{lost}-01234567.json": content,
        "drafts/0f/adapter/weights": b"x",
        "checks/0f.json": b"x",
        f"checkpoints/{key}.safetensors": b"x",
        f"checkpoints/{unknown}.safetensors": b"x",
        f"failed/{unknown}.json": b"{}",
        f"files/{key}/{dead}/adapter/weights": b"x",
        f"unfinished/{dead}.json": json.dumps({"at": 0, "folder": f"files/{key}/{dead}"}).encode(),
    }
    useful = {
        f"checkpoints/{lost}.safetensors": b"x",
        f"failed/{lost}.json": b"{}",
        f"files/{key}/{writing}/adapter/weights": b"x",
        f"unfinished/{writing}.json": json.dumps(
            {"at": time.time(), "folder": f"files/{key}/{writing}"}
        ).encode(),
        "studies/one/live.json": b"{}",
        f"profiles/{unknown}-1xgpu1.json": b"{}",
    }
    for name, data in (useless | useful).items():
        store.backend.write(name, data)
    aged(store)
    garbage = store_gc.find_garbage([out])
    prefixes = {item.prefix for item in garbage.items}
    removed = {name for name in store.backend.sizes("") if any(map(name.startswith, prefixes))}
    assert removed == {*useless, *store.backend.sizes(files)}
    before = set(store.backend.sizes(""))
    assert garbage.delete() == garbage.bytes
    assert set(store.backend.sizes("")) == before - removed
    assert store_gc.find_garbage([out]).items == []


@pytest.mark.whole
def test_an_interruption_leaves_a_valid_store(run, store, monkeypatch):
    out = run([0.2, 0.9])
    run([0.2])
    aged(store)
    before = load_results(out).table
    monkeypatch.setattr(
        LocalBackend, "remove_folder", lambda self, place: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        store_gc.find_garbage([out]).delete()
    monkeypatch.undo()
    assert load_results(out).table.equals(before)
    aged(store)
    while garbage := store_gc.find_garbage([out]).items:  # what was begun is still garbage
        assert store_gc.find_garbage([out]).delete() > 0
        assert len(garbage) < 99
        aged(store)
    assert not [name for name in store.backend.sizes("files/") if name.split("/")[1] not in keys(store)]
    assert load_results(out).table.equals(before)


@pytest.mark.whole
def test_adapters_from_which_nothing_starts_go_and_tables_stay_complete(run, store, capsys):
    out = run([0.2, 0.9])
    aged(store)
    before, held = load_results(out).table, folder_size(store.backend.root)
    assert cli.main(["gc", str(out), "--adapters"]) == 0
    assert "would train up to 4 stages again" in capsys.readouterr().out
    garbage = store_gc.find_garbage([out], adapters=True)
    # Of 7 stages, the first and the two of the recommended setting keep their adapters.
    assert [item.kind for item in garbage.items] == [store_gc.ADAPTERS] * 4
    assert garbage.bytes == 4 * 100 * KB
    assert garbage.delete() == 400 * KB
    assert held - folder_size(store.backend.root) > 399 * KB  # four marks say so
    assert load_results(out).table.equals(before)
    assert run([0.2, 0.9]) == out  # everything is answered from the store
    assert held - folder_size(store.backend.root) > 399 * KB
    assert store_gc.find_garbage([out], adapters=True).items == []


def test_a_stage_without_its_adapter_is_trained_again_and_keeps_its_scores(world):
    first, second = world.stages_of("ones", "fours")
    world.runner.run(WorkItem(first, (world.evaluation("ones"),)))
    theta = (world.store.open(first) / "adapter" / "theta.safetensors").read_bytes()
    assert world.store.remove_adapter(first.key) == len(theta)
    assert world.store.remove_adapter(first.key) == 0
    assert set(world.store.score_entries(first)) == {world.evaluation("ones").key}
    assert world.store.has(WorkItem(first, (world.evaluation("ones"),)))  # its record is whole
    with pytest.warns(
        UserWarning, match="lost its adapter, which was removed to free space; .* will be repeated"
    ):
        world.runner.run(WorkItem(second))
    assert (world.store.open(first) / "adapter" / "theta.safetensors").read_bytes() == theta
    assert set(world.store.score_entries(first)) == {world.evaluation("ones").key}
    assert world.learner.begun == ["ones", "ones", "fours"]


@pytest.mark.whole
def test_an_unfinished_study_keeps_the_adapters_that_it_still_starts_from(run, store):
    out = run([0.2, 0.9])
    last = [r["key"] for r in store if len(r["earlier"]) == 2]
    lost = last[0]
    store.discard(lost)
    aged(store)
    removed = {item.key for item in store_gc.find_garbage([out], adapters=True).items}
    assert removed <= set(last[1:])
    assert removed
    records = {r["key"]: r for r in store}
    assert all(len(records[key]["earlier"]) == 2 for key in removed)


def test_gc_in_json_names_each_item(run, store, capsys):
    out = run([0.2, 0.9])
    run([0.2])
    aged(store)
    assert cli.main(["gc", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["freed"] == 0
    assert shown["bytes"] == sum(item["bytes"] for item in shown["items"])
    assert {item["name"] for item in shown["items"]} < keys(store)


def test_studies_of_several_stores_are_refused(run, store, tmp_path):
    one = run([0.2])
    study = saved_study.require_saved_study(one)
    other = tmp_path / "moved"
    saved_study.save_study(replace(study, output=Output(str(tmp_path / "elsewhere"))), other)
    with pytest.raises(store_gc.ResultsError, match="several stores"):
        store_gc.find_garbage([one, other])
    aged(store)
    assert store_gc.find_garbage([one, other], str(store.backend.root)).items == []
    with pytest.raises(store_gc.ResultsError, match="holds nothing"):
        store_gc.find_garbage([other])


def test_discarding_a_stage_that_is_not_stored_frees_nothing(store):
    assert store.discard("f" * 64) == 0


@pytest.mark.whole
def test_a_store_at_a_url_is_cleaned_by_the_same_rules(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    url = f"memory://cleaned/{tmp_path.name}"
    out = run([0.2, 0.9], store=url)
    run([0.2], store=url)
    assert store_gc.find_garbage([out]).items == []  # everything is too recent
    monkeypatch.setattr(store_gc, "RECENT_S", -1)
    store, before = open_store(url), load_results(out).table
    had = keys(store)
    garbage = store_gc.find_garbage([out], adapters=True)
    assert garbage.store.url == url
    assert garbage.size == store.size()
    kinds = Counter(item.kind for item in garbage.items)
    assert kinds[store_gc.STAGES] == 2
    assert kinds[store_gc.ADAPTERS] >= 2
    assert kinds["leases that ended"] == len(had)
    assert cli.main(["gc", str(out), "--adapters", "--delete", "--store", url]) == 0
    fresh = open_store(url)
    assert garbage.size - fresh.size() >= garbage.bytes
    assert len(keys(fresh)) == len(had) - 2
    assert load_results(out).table.equals(before)
    assert store_gc.find_garbage([out], adapters=True).items == []


def test_a_store_without_timestamps_is_left_alone(run, store, monkeypatch):
    out = run([0.2, 0.9])
    run([0.2])
    aged(store)
    monkeypatch.setattr(LocalBackend, "modified_at", lambda self, name: None)
    with pytest.raises(MissingTimestampsError, match="does not tell when"):
        store_gc.find_garbage([out])
