"""What a store's studies no longer need is found, shown, and removed; what they need stays."""

import json
import os
import time

import pytest

from dgg_ray import cli, gc, studyfile
from dgg_ray.published import weight
from dgg_ray.results import table
from dgg_ray.stages import StageStore

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
protocol: {max_new_tokens: 2, rivals: [finetune], exams: seen}
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
    monkeypatch.setattr("dgg_ray.report.write", lambda results, out: out)  # figures take seconds


@pytest.fixture()
def run(tmp_path, adapters, capsys):
    """Run a study with these values of α, all in one store; its folder of results."""

    def run(alphas, name="one"):
        text = STUDY.replace("NAME", name).replace("ALPHAS", str(alphas))
        (tmp_path / "study.yaml").write_text(text + f"output: {{store: {tmp_path / 'stages'}}}\n")
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
    """As if everything had been written that long ago."""
    then = time.time() - 3600 * hours
    for place in store.folder.rglob("*"):
        os.utime(place, (then, then))


def keys(store):
    return {record["key"] for record in store}


def test_a_study_needs_all_that_it_asked_for_and_nothing_of_its_earlier_version(run, store, capsys):
    out = run([0.2, 0.9])
    earlier = keys(store)
    assert len(earlier) == 7  # a first stage that all share, two of each α, two of the rival
    aged(store)
    assert gc.find([out]).items == []

    run([0.2, 0.5])
    now = keys(store)
    assert len(now) == 9
    aged(store)
    before = table(out)
    held = weight(store.folder)
    litter = gc.find([out])
    stages = {item.key for item in litter.items if item.what == gc.STAGES}
    assert len(stages) == 2  # of 0.9
    assert stages < earlier
    assert litter.bytes == 200 * KB

    assert cli.main(["gc", str(out)]) == 0  # only shown
    assert "nothing was removed" in capsys.readouterr().out
    assert keys(store) == now

    assert cli.main(["gc", str(out), "--delete"]) == 0
    assert "freed" in capsys.readouterr().out
    assert keys(store) == now - stages
    assert held - weight(store.folder) >= litter.bytes
    assert table(out).equals(before)
    assert gc.find([out]).items == []


def test_a_store_of_unnamed_studies_is_left_alone(run, store, capsys):
    one, other = run([0.2], "one"), run([0.2, 0.7], "other")
    aged(store)
    assert cli.main(["gc", str(one), "--delete"]) == 1
    said = capsys.readouterr().err
    assert "InUse" in said
    assert "holds stages of other" in said
    assert "--gone" in said
    assert gc.find([one, other]).items == []
    everything = len(keys(store))

    assert cli.main(["gc", str(one), "--gone", "other", "--delete"]) == 0
    assert len(keys(store)) == everything - 2
    assert len(table(one)) > 0


def test_what_is_younger_than_an_hour_stays(run, store):
    out = run([0.2, 0.9])
    run([0.2])
    assert gc.find([out]).items == []
    aged(store, hours=0.9)
    assert gc.find([out]).items == []
    aged(store, hours=1.1)
    litter = gc.find([out])
    assert len(litter.items) == 2
    exams = store.folder / litter.items[0].key[:2] / litter.items[0].key / "exams"
    os.utime(exams)  # another driver examines it just now
    litter.delete()
    assert exams.exists()
    assert not litter.items[1].place.exists()


def test_leftovers_go_and_what_is_of_use_stays(run, store):
    out = run([0.2])
    key, lost = sorted(keys(store))[:2]
    (store.folder / "damaged" / f"{key}-01234567").mkdir(parents=True)
    (store.folder / lost[:2] / lost).rename(store.folder / "damaged" / f"{lost}-01234567")
    for kind, name in (("drafts", "0f"), ("damaged", "0123456789abcdef-01234567")):
        (store.folder / kind / name).mkdir(parents=True)
    (store.folder / "inflight").mkdir(exist_ok=True)
    for name in (key, lost, "f" * 64):
        (store.folder / "inflight" / f"{name}.safetensors").write_bytes(b"x")
    (store.folder / "failed").mkdir(exist_ok=True)
    for name in (lost, "f" * 64):
        (store.folder / "failed" / f"{name}.json").write_text("{}")
    aged(store)
    found = {str(item.place.relative_to(store.folder)) for item in gc.find([out]).items}
    assert found == {
        f"damaged/{key}-01234567",  # the stage itself is there
        "damaged/0123456789abcdef-01234567",
        "drafts/0f",
        f"inflight/{key}.safetensors",
        f"inflight/{'f' * 64}.safetensors",
        f"failed/{'f' * 64}.json",
    }
    litter = gc.find([out])
    assert litter.delete() == litter.bytes
    assert gc.find([out]).items == []


def test_an_interruption_leaves_a_valid_store(run, store, monkeypatch):
    out = run([0.2, 0.9])
    run([0.2])
    aged(store)
    litter = gc.find([out])
    real = StageStore.discard

    def stopped(self, key, part=""):
        real(self, key, part)
        raise KeyboardInterrupt

    monkeypatch.setattr(StageStore, "discard", stopped)
    with pytest.raises(KeyboardInterrupt):
        litter.delete()
    monkeypatch.undo()
    assert len(gc.find([out]).items) == 1
    assert len(table(out)) > 0


def test_adapters_that_nothing_starts_from_go_and_tables_stay(run, store, capsys):
    out = run([0.2, 0.9])
    aged(store)
    before, held = table(out), weight(store.folder)
    assert cli.main(["gc", str(out), "--adapters"]) == 0
    assert "would learn up to 4 stages again" in capsys.readouterr().out
    litter = gc.find([out], adapters=True)
    # Of 7 stages the first and the two of the recommended setting keep theirs.
    assert [item.what for item in litter.items] == [gc.ADAPTERS] * 4
    assert litter.bytes == 4 * 100 * KB
    assert litter.delete() == 400 * KB
    assert weight(store.folder) == held - 400 * KB
    assert table(out).equals(before)
    assert run([0.2, 0.9]) == out  # all of it is answered from the store
    assert weight(store.folder) == held - 400 * KB
    assert gc.find([out], adapters=True).items == []


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_stage_without_its_adapter_is_learned_again_with_its_scores(world):
    first, second = world.path("ones", "fours")
    from dgg_ray.stages import Work

    world.shop.obtain(Work(first, (world.exam("ones"),)))
    theta = (world.store.open(first) / "adapter" / "theta.safetensors").read_bytes()
    assert world.store.discard(first.key, "adapter") == len(theta)
    assert world.store.discard(first.key, "adapter") == 0
    assert set(world.store.cells(first)) == {world.exam("ones").key}
    world.shop.obtain(Work(second))
    assert (world.store.open(first) / "adapter" / "theta.safetensors").read_bytes() == theta
    assert set(world.store.cells(first)) == {world.exam("ones").key}
    assert world.learner.begun == ["ones", "ones", "fours"]


def test_an_unfinished_study_keeps_the_weights_that_it_goes_on_from(run, store):
    out = run([0.2, 0.9])
    last = [r["key"] for r in store if len(r["earlier"]) == 2]
    lost = last[0]
    store.discard(lost)
    aged(store)
    shed = {item.key for item in gc.find([out], adapters=True).items}
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
    study = studyfile.the_kept(one)
    other = tmp_path / "moved"
    from dataclasses import replace

    from dgg_ray.sections import Output

    studyfile.keep(replace(study, output=Output(tmp_path / "elsewhere")), other)
    with pytest.raises(gc.ResultsError, match="several stores"):
        gc.find([one, other])
    aged(store)
    assert gc.find([one, other], store.folder).items == []
    with pytest.raises(gc.ResultsError, match="is no folder"):
        gc.find([other])


def test_discarding_what_is_not_there_frees_nothing(store):
    assert store.discard("f" * 64) == 0
