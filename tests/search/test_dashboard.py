"""The copy of the search may fail in any way; the search is the same."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from marked import first_quick

from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.search import dashboard
from dgg_ray.search.dashboard import Copy


def search(copy: Callable[[optuna.Study], Copy], between: Callable[[int], None] = lambda n: None) -> list:
    """What five trials proposed."""
    study = optuna.create_study(study_name="toy", sampler=optuna.samplers.TPESampler(seed=1))
    kept = copy(study)
    for number in range(5):
        between(number)
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        study.tell(trial, trial.params["x"])
        kept.update()
    return [trial.params["x"] for trial in study.trials]


def at(file: Path, optional: OptionalOutputs) -> Callable[[optuna.Study], Copy]:
    return lambda study: Copy(study, ["faa"], file, optional)


FOLDERS = ["a?b#c", "plain", "with space", "a%20b", "{SCHEMA_VERSION} {0}", "α–Ж"]


@pytest.mark.parametrize("folder", first_quick(FOLDERS))
def test_the_copy_holds_every_trial_whatever_its_folder_is_called(folder, tmp_path, monkeypatch):
    optional = OptionalOutputs()
    (tmp_path / folder).mkdir()
    found = search(at(tmp_path / folder / "search.db", optional))
    assert optional.messages == []
    assert [file.name for file in (tmp_path / folder).iterdir()] == ["search.db"]
    monkeypatch.chdir(tmp_path / folder)
    opened = optuna.load_study(study_name="toy", storage="sqlite:///search.db")
    assert [trial.params["x"] for trial in opened.trials] == found


@pytest.mark.whole
def test_a_writer_that_holds_it_costs_the_copy_and_not_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard, "WAIT_S", 0.1)
    file, optional = tmp_path / "search.db", OptionalOutputs()
    held = sqlite3.connect(file, isolation_level=None)

    def hold(number: int) -> None:
        if number == 3:
            held.close()
            other.append(sqlite3.connect(file, isolation_level=None))
            other[0].execute("BEGIN EXCLUSIVE")

    other: list[sqlite3.Connection] = []
    found = search(at(file, optional), hold)
    other[0].close()
    assert found == search(at(tmp_path / "undisturbed.db", OptionalOutputs()))
    (line,) = optional.messages
    assert line.startswith("search.db, the copy of the search for optuna-dashboard, is not kept any further")
    again = OptionalOutputs()
    search(at(file, again))  # the next run makes it anew
    assert again.messages == []
    assert len(optuna.load_study(study_name="toy", storage=f"sqlite:///{file}").trials) == 5


def folder(file: Path) -> None:
    file.mkdir()


def rubbish(file: Path) -> None:
    file.write_text("this is no database " * 100, encoding="utf-8")


def journal(file: Path) -> None:
    file.with_name("search.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))


def nowhere(file: Path) -> None:
    file.parent.rmdir()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return search(at(tmp_path_factory.mktemp("search") / "search.db", OptionalOutputs()))


@pytest.mark.parametrize(("before", "lost"), [(folder, 1), (rubbish, 0), (journal, 0), (nowhere, 1)])
def test_whatever_is_in_its_place_the_search_is_the_same(before, lost, undisturbed, tmp_path):
    (tmp_path / "out").mkdir()
    file, optional = tmp_path / "out" / "search.db", OptionalOutputs()
    before(file)
    assert search(at(file, optional)) == undisturbed
    assert len(optional.messages) == lost


def test_a_path_too_long_is_no_reason_to_stop(tmp_path):
    optional = OptionalOutputs()
    search(at(tmp_path / ("x" * 300) / "search.db", optional))
    assert len(optional.messages) == 1
