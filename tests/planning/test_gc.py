"""What a store's studies no longer need is found, shown, and removed; what they need stays."""

import json
import os
import time
from collections import Counter
from dataclasses import replace

import pytest

from dgg_ray import cli
from dgg_ray.analysis.load import table
from dgg_ray.config import loader
from dgg_ray.config.sections import Output
from dgg_ray.config.study import store_at
from dgg_ray.core.errors import NoTimes
from dgg_ray.core.stage import WorkItem
from dgg_ray.planning import store_gc
from dgg_ray.storage.backend import Folder, weight
from dgg_ray.storage.leases import Holder
from dgg_ray.storage.manifest import name_of
from dgg_ray.storage.stage_store import StageStore

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
    """Simulated stages with an adapter of a hundred kilobytes."""
    publish = StageStore.publish

    def full(self, stage, record, fill):
        def adapter(folder):
            (folder / "adapter").mkdir()
            (folder / "adapter" / "weights").write_bytes(b"x" * 100 * KB)

        publish(self, stage, record, adapter)

    monkeypatch.setattr(StageStore, "publish", full)
    monkeypatch.setattr("dgg_ray.report.report.write", lambda results, out: out)  # figures take seconds


@pytest.fixture()
def run(tmp_path, adapters, capsys):
    """Run a study with these values of α, all in one store; its folder of results."""

    def run(alphas, name="one", store=tmp_path / "stages"):
        text = STUDY.replace("NAME", name).replace("ALPHAS", str(alphas))
        (tmp_path / "study.yaml").write_text(text + f"output: {{store: '{store}'}}\n")
        out = tmp_path / name
        arguments = ["run", str(tmp_path / "study.yaml"), "--out", str(out), "--local", "--quiet"]
        assert cli.main(arguments) == 0
        capsys.readouterr()
        return out

    return run


@pytest.fixture()
def store(tmp_path):
    return StageStore(tmp_path / "stages")


def aged(store, hours=2.0):
    """As if everything had been written that long ago, and leases that ended been removed."""
    store.objects.clear("leases")
    then = time.time() - 3600 * hours
    for place in store.folder.rglob("*"):
        os.utime(place, (then, then))


def keys(store):
    return {record["key"] for record in store}


def test_a_study_needs_all_that_it_asked_for_and_nothing_of_its_earlier_version(run, store, capsys):
    out = run([0.2, 0.9])
    earlier = keys(store)
    assert len(earlier) == 7  # a first stage that all share, two of each α, two of the baseline
    aged(store)
    assert store_gc.find([out]).items == []

    run([0.2, 0.5])
    now = keys(store)
    assert len(now) == 9
    aged(store)
    before = table(out)
    held = weight(store.folder)
    litter = store_gc.find([out])
    stages = {item.key for item in litter.items if item.what == store_gc.STAGES}
    assert len(stages) == 2  # of 0.9
    assert stages < earlier
    assert litter.bytes == 200 * KB  # and, when it goes, the records

    assert cli.main(["gc", str(out)]) == 0  # only shown
    assert "nothing was removed" in capsys.readouterr().out
    assert keys(store) == now

    assert cli.main(["gc", str(out), "--delete"]) == 0
    assert "freed" in capsys.readouterr().out
    assert keys(store) == now - stages
    assert held - weight(store.folder) >= litter.bytes
    assert table(out).equals(before)
    assert store_gc.find([out]).items == []


def test_what_other_studies_of_the_store_need_is_known_to_it(run, store, capsys):
    one, other = run([0.2], "one"), run([0.2, 0.7], "other")
    aged(store)
    everything = len(keys(store))
    for named in (["--store", store.url], [str(one)], [str(one), str(other)]):
        assert cli.main(["gc", *named, "--delete"]) == 0
        assert len(keys(store)) == everything

    assert cli.main(["gc", str(one), "--gone", "other", "--delete"]) == 0
    assert len(keys(store)) == everything - 2
    assert len(table(one)) > 0


def test_a_store_with_stages_of_a_study_that_it_does_not_know_is_left_alone(run, store, capsys):
    one, other = run([0.2], "one"), run([0.2, 0.7], "other")
    aged(store)
    store.forget("studies/other/study.json")
    for named in ([str(one)], ["--store", store.url]):
        assert cli.main(["gc", *named, "--delete"]) == 1
        said = capsys.readouterr().err
        assert "InUse" in said
        assert "holds stages of other" in said
        assert "--gone" in said
    assert store_gc.find([one, other]).items == []


def test_two_versions_of_a_study_in_two_folders_are_both_kept(run, store, tmp_path):
    out = run([0.2], "one")
    old = tmp_path / "old"
    out.rename(old)
    new = run([0.7], "one")
    aged(store)
    assert store_gc.find([old, new]).items == []
    assert store_gc.find([old]).items == []  # the store knows of the new one
    assert len([item for item in store_gc.find([new]).items if item.what == store_gc.STAGES]) == 2


@pytest.mark.parametrize("content", [b"", b'{"content": {"raw": {}}}', b'{"content": {}}'])
def test_a_study_whose_note_cannot_be_read_may_need_everything(run, store, content, capsys):
    one, other = run([0.2], "one"), run([0.2, 0.7], "other")
    store.objects.write("studies/other/study.json.json", content)
    aged(store)
    assert cli.main(["gc", str(one), "--delete"]) == 1
    said = capsys.readouterr().err
    assert "what study 'other' needs cannot be read" in said
    assert "--gone other" in said
    assert store_gc.find([one, other]).items == []
    assert len(store_gc.find([one], gone=["other"]).items) == 2


def test_neither_results_nor_store_is_told_what_to_name(capsys):
    assert cli.main(["gc"]) == 1
    assert "name a study's results folder, or the store with --store" in capsys.readouterr().err


def test_what_is_younger_than_an_hour_stays(run, store):
    out = run([0.2, 0.9])
    run([0.2])
    assert store_gc.find([out]).items == []
    aged(store, hours=0.9)
    assert store_gc.find([out]).items == []
    aged(store, hours=1.1)
    litter = store_gc.find([out])
    assert len(litter.items) == 2
    one, other = (item.place for item in litter.items)
    sitting = store.objects.names(f"{one}.")[1]
    os.utime(store.folder / sitting)  # another driver examined it just now
    litter.delete()
    assert sitting in store.objects.names(one)
    assert store.objects.names(other) == []


def test_what_a_driver_has_stays(run, store):
    out = run([0.2, 0.9])
    run([0.2])
    aged(store)
    litter = store_gc.find([out])
    one, other = (item.key for item in litter.items)
    driver = Holder("another", "elsewhere", 1)
    assert store.lease(one, driver) is None
    assert [item.key for item in store_gc.find([out]).items] == [other]
    litter.delete()
    assert one in keys(store)
    assert other not in keys(store)
    store.release(one, driver)
    store_gc.find([out]).delete()
    assert one not in keys(store)
    aged(store)
    assert store.objects.names("leases/") == []


def test_leftovers_go_and_what_is_of_use_stays(run, store):
    out = run([0.2])
    key, lost = sorted(keys(store))[:2]
    content = store.objects.read(name_of(lost))
    store.objects.remove(name_of(lost))  # set aside; its sittings, and what failed since, are of use
    files = f"files/{lost}/{os.listdir(store.folder / 'files' / lost)[0]}"
    unknown, writing, dead = "f" * 64, "0" * 12, "1" * 12
    litter = {
        f"damaged/{lost}-01234567.json": content,
        "drafts/0f/adapter/weights": b"x",
        "checks/0f.json": b"x",
        f"inflight/{key}.safetensors": b"x",
        f"inflight/{unknown}.safetensors": b"x",
        f"failed/{unknown}.json": b"{}",
        f"files/{key}/{dead}/adapter/weights": b"x",
        f"writers/{dead}.json": json.dumps({"at": 0, "place": f"files/{key}/{dead}"}).encode(),
    }
    of_use = {
        f"inflight/{lost}.safetensors": b"x",
        f"failed/{lost}.json": b"{}",
        f"files/{key}/{writing}/adapter/weights": b"x",
        f"writers/{writing}.json": json.dumps(
            {"at": time.time(), "place": f"files/{key}/{writing}"}
        ).encode(),
        "studies/one/live.json": b"{}",
        f"profiles/{unknown}-1xgpu1.json": b"{}",
    }
    for name, data in (litter | of_use).items():
        store.objects.write(name, data)
    aged(store)
    found = store_gc.find([out])
    places = {item.place for item in found.items}
    gone = {name for name in store.objects.sizes("") if any(name.startswith(place) for place in places)}
    assert gone == {*litter, *store.objects.sizes(files)}
    before = set(store.objects.sizes(""))
    assert found.delete() == found.bytes
    assert set(store.objects.sizes("")) == before - gone
    assert store_gc.find([out]).items == []


def test_an_interruption_leaves_a_valid_store(run, store, monkeypatch):
    out = run([0.2, 0.9])
    run([0.2])
    aged(store)
    before = table(out)
    monkeypatch.setattr(Folder, "clear", lambda self, place: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store_gc.find([out]).delete()
    monkeypatch.undo()
    assert table(out).equals(before)
    aged(store)
    monkeypatch.setattr("dgg_ray.storage.leases.LEASE_S", 0)
    while litter := store_gc.find([out]).items:  # what was begun is litter still
        assert store_gc.find([out]).delete() > 0
        assert len(litter) < 99
        aged(store)
    assert not [name for name in store.objects.sizes("files/") if name.split("/")[1] not in keys(store)]
    assert table(out).equals(before)


def test_adapters_that_nothing_starts_from_go_and_tables_stay(run, store, capsys):
    out = run([0.2, 0.9])
    aged(store)
    before, held = table(out), weight(store.folder)
    assert cli.main(["gc", str(out), "--adapters"]) == 0
    assert "would learn up to 4 stages again" in capsys.readouterr().out
    litter = store_gc.find([out], adapters=True)
    # Of 7 stages the first and the two of the recommended setting keep theirs.
    assert [item.what for item in litter.items] == [store_gc.ADAPTERS] * 4
    assert litter.bytes == 4 * 100 * KB
    assert litter.delete() == 400 * KB
    assert held - weight(store.folder) > 399 * KB  # four notes tell of it
    assert table(out).equals(before)
    assert run([0.2, 0.9]) == out  # all of it is answered from the store
    assert held - weight(store.folder) > 399 * KB
    assert store_gc.find([out], adapters=True).items == []


def test_a_stage_without_its_adapter_is_learned_again_with_its_scores(world):
    first, second = world.path("ones", "fours")
    world.shop.obtain(WorkItem(first, (world.evaluation("ones"),)))
    theta = (world.store.open(first) / "adapter" / "theta.safetensors").read_bytes()
    assert world.store.discard(first.key, "adapter") == len(theta)
    assert world.store.discard(first.key, "adapter") == 0
    assert set(world.store.cells(first)) == {world.evaluation("ones").key}
    assert world.store.has(WorkItem(first, (world.evaluation("ones"),)))  # its record is whole
    with pytest.warns(UserWarning, match="shed of its weights to free space; .* done again"):
        world.shop.obtain(WorkItem(second))
    assert (world.store.open(first) / "adapter" / "theta.safetensors").read_bytes() == theta
    assert set(world.store.cells(first)) == {world.evaluation("ones").key}
    assert world.learner.begun == ["ones", "ones", "fours"]


def test_an_unfinished_study_keeps_the_weights_that_it_goes_on_from(run, store):
    out = run([0.2, 0.9])
    last = [r["key"] for r in store if len(r["earlier"]) == 2]
    lost = last[0]
    store.discard(lost)
    aged(store)
    shed = {item.key for item in store_gc.find([out], adapters=True).items}
    assert shed <= set(last[1:])
    assert shed
    records = {r["key"]: r for r in store}
    assert all(len(records[key]["earlier"]) == 2 for key in shed)


def test_gc_in_json_names_each_piece(run, store, capsys):
    out = run([0.2, 0.9])
    run([0.2])
    aged(store)
    assert cli.main(["gc", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["freed"] == 0
    assert told["bytes"] == sum(item["bytes"] for item in told["items"])
    assert {item["name"] for item in told["items"]} < keys(store)


def test_studies_of_several_stores_are_refused(run, store, tmp_path):
    one = run([0.2])
    study = loader.the_kept(one)
    other = tmp_path / "moved"
    loader.keep(replace(study, output=Output(str(tmp_path / "elsewhere"))), other)
    with pytest.raises(store_gc.ResultsError, match="several stores"):
        store_gc.find([one, other])
    aged(store)
    assert store_gc.find([one, other], str(store.folder)).items == []
    with pytest.raises(store_gc.ResultsError, match="holds nothing"):
        store_gc.find([other])


def test_discarding_what_is_not_there_frees_nothing(store):
    assert store.discard("f" * 64) == 0


def test_a_store_at_a_url_is_cleaned_by_the_same_rules(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    url = f"memory://cleaned/{tmp_path.name}"
    out = run([0.2, 0.9], store=url)
    run([0.2], store=url)
    assert store_gc.find([out]).items == []  # all of it is young
    monkeypatch.setattr(store_gc, "YOUNG_S", -1)
    store, before = store_at(url), table(out)
    had = keys(store)
    litter = store_gc.find([out], adapters=True)
    assert litter.store.url == url
    assert litter.size == store.size()
    kinds = Counter(item.what for item in litter.items)
    assert kinds[store_gc.STAGES] == 2
    assert kinds[store_gc.ADAPTERS] >= 2
    assert kinds["leases that ended"] == len(had)
    assert cli.main(["gc", str(out), "--adapters", "--delete", "--store", url]) == 0
    fresh = store_at(url)
    assert litter.size - fresh.size() >= litter.bytes
    assert len(keys(fresh)) == len(had) - 2
    assert table(out).equals(before)
    assert store_gc.find([out], adapters=True).items == []


def test_a_store_that_tells_no_times_is_left_alone(run, store, monkeypatch):
    out = run([0.2, 0.9])
    run([0.2])
    aged(store)
    monkeypatch.setattr(Folder, "modified", lambda self, name: None)
    with pytest.raises(NoTimes, match="does not say when"):
        store_gc.find([out])
