"""A study is built in Python by the rules by which a file is read."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from stage_samples import Far, Near, Pulled

from dgg_ray import Study, load_study, study_to_dict, study_to_yaml
from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter, Workers
from dgg_ray.core.errors import StudyError
from dgg_ray.core.interfaces import Adapter, Training
from dgg_ray.models import embedded
from dgg_ray.readers.embedded import Embedded
from dgg_ray.strategies.dgg import DGG
from dgg_ray.strategies.replay import Replay

ROOT = Path(__file__).parents[2]
TASKS = [
    {"name": "words", "reader": "embedded", "train": 12, "validation": 10, "test": 10},
    {"name": "charts", "reader": "embedded", "train": 12, "validation": 10, "test": 10},
]
SMALL = {
    "name": "small",
    "model": "embedded",
    "tasks": TASKS,
    "strategy": {"name": "dgg", "alpha": 0.3, "buffer": 4},
    "training": {"batch_size": 8, "learning_rate": 5e-3},
    "seeds": [0, 1],
    "search": {"space": {"strategy.alpha": {"per_task": [0, 0.3]}}, "trials": 4},
    "protocol": {"held_out": 1, "baselines": ["replay"]},
}


def asked(study: Study) -> dict:
    """All that was asked for, without where it stood."""
    return {f.name: getattr(study, f.name) for f in fields(study) if f.name != "file"}


def test_a_mapping_is_the_study_of_the_file_that_says_the_same(tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    assert asked(load_study(SMALL)) == asked(load_study(tmp_path / "small.yaml"))


def test_parts_may_be_objects():
    size = {"train": 12, "validation": 10, "test": 10}
    built = load_study(
        {
            "name": "small",
            "model": embedded.Embedded(),
            "tasks": {"words": Embedded(**size), "charts": Embedded(**size)},
            "strategy": DGG(alpha=0.3, buffer=4),
            "training": Training(batch_size=8, learning_rate=5e-3),
            "seeds": (0, 1),
            "search": Search({"strategy.alpha": SearchParameter(values=(0, 0.3), per_task=True)}, trials=4),
            "protocol": Protocol(held_out=1, baselines=("replay",)),
        }
    )
    assert asked(built) == asked(load_study(SMALL))


def test_numbers_may_be_numpys():
    training = {"batch_size": np.int64(8), "learning_rate": 5e-3}
    for seeds in (np.arange(2), list(np.arange(2))):
        study = load_study({**SMALL, "seeds": seeds, "training": training})
        assert asked(study) == asked(load_study(SMALL))


def test_all_faults_are_told_by_their_path_and_without_a_line():
    wrong = {**SMALL, "strategy": DGG(alpha=1.5), "sedes": [1], "training": {"epochs": "2"}}
    with pytest.raises(StudyError) as error:
        load_study(wrong)
    assert str(error.value).splitlines() == [
        "study: 3 faults",
        "  sedes: no such setting. Did you mean 'seeds'?",
        "  strategy.alpha: must be at most 1, got 1.5",
        "  training.epochs: must be a whole number, got '2'",
    ]


def test_an_object_that_its_settings_do_not_tell_from_another_is_a_fault():
    given = {**SMALL, "search": None, "protocol": {"baselines": []}}
    assert load_study({**given, "strategy": Pulled(Near(2.0))}).strategy == Pulled(Near(2.0))
    with pytest.raises(
        StudyError, match=r"strategy.pull: is read as Near: .* must differ in fields, got Far"
    ):
        load_study({**given, "strategy": Pulled(Far(2.0))})


@pytest.mark.parametrize("given", [None, [], "small", {}, {"name": "x"}, {**SMALL, "tasks": {"words": 3}}])
def test_what_is_no_study_is_a_fault(given):
    with pytest.raises(StudyError):
        load_study(given)


def test_a_mapping_that_holds_itself_is_a_fault():
    training: dict = {}
    training["epochs"] = training
    with pytest.raises(StudyError, match="must not be nested deeper"):
        load_study({**SMALL, "training": training})


def test_relative_paths_start_from_data(tmp_path):
    task = {"reader": "llava", "train": "train.json", "test": "test.json"}
    with pytest.raises(StudyError, match=str(tmp_path)):
        load_study({**SMALL, "tasks": {"a": task, "b": task}}, data=tmp_path)


@pytest.mark.parametrize("change", ["as it is", "per task", "designs"])
def test_a_study_comes_back_from_its_own_settings(change, tmp_path):
    study = load_study(SMALL)
    if change == "per task":
        study = study.at({"strategy.alpha.words": 0.1, "strategy.buffer": 8})
    elif change == "designs":
        more = {
            "orders": Orders("random", 2),
            "workers": Workers(groups=2),
            "adapter": Adapter(targets=("q_proj",)),
            "protocol": Protocol(baselines=("finetune",)),
        }
        study = load_study({**SMALL, **more, "strategy": Replay(3), "search": None})
    assert asked(load_study(study_to_dict(study))) == asked(study)
    (tmp_path / "again.yaml").write_text(study_to_yaml(study))
    assert asked(load_study(tmp_path / "again.yaml")) == asked(study)


def test_texts_that_yaml_would_read_as_something_else_come_back(tmp_path):
    for name in ("no", "010", "1e-3", "1_000", "2026-11-29", "~", "a: b", "on", ".5", "é ü"):
        question = {**SMALL, "question": name}
        (tmp_path / "again.yaml").write_text(study_to_yaml(load_study(question)), encoding="utf-8")
        assert load_study(tmp_path / "again.yaml").question == name


def test_the_repositorys_studies_come_back(tmp_path):
    study = load_study(ROOT / "studies" / "quickstart.yaml")
    (tmp_path / "again.yaml").write_text(study_to_yaml(study), encoding="utf-8")
    assert asked(load_study(tmp_path / "again.yaml")) == asked(study)
