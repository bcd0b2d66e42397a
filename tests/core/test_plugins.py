"""Plug-ins of the user's own: found, checked, keyed by source, and reported after an edit."""

import importlib
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from functools import partial
from itertools import count

import pandas as pd
import pytest
from study_samples import with_data

from dgg_ray import cli, load_study, run_study
from dgg_ray.config import search_rules
from dgg_ray.core import error_records, file_hashes, plugins, sources, strategy_checks
from dgg_ray.core.errors import NonFiniteError, StageError, StudyError
from dgg_ray.core.interfaces import Score
from dgg_ray.planning import edited_plugins
from dgg_ray.readers._task_reading import read_task

NUMBER = count()
STRATEGY = """
from dataclasses import dataclass
from dgg_ray.core.strategy import Strategy


@dataclass(frozen=True)
class Mine(Strategy):
    strength: float = 1.0

"""


@pytest.fixture()
def mine(tmp_path, monkeypatch):
    """Write a module; its name. Each is another one, as Python reads a module once."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        name = f"of_mine_{next(NUMBER)}"
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return name

    return write


def faults_of(kind: str, name: str) -> str:
    with pytest.raises(StudyError) as error:
        plugins.find(kind, name)
    return str(error.value)


# -- finding ---------------------------------------------------------------------------------------


def test_the_one_class_of_a_module_needs_no_name(mine):
    name = mine(STRATEGY)
    assert plugins.find("strategies", f"{name}:Mine") is plugins.find("strategies", f"{name}:Mine")


def test_the_most_derived_of_several_classes_is_the_plugin(mine):
    name = mine(STRATEGY + "\nclass Base(Mine):\n    pass\n\n\nclass Last(Base):\n    pass\n")
    module = importlib.import_module(name)
    assert plugins.only_class(module, plugins.KINDS["strategies"]).__name__ == "Last"


@pytest.mark.parametrize(
    ("kind", "text", "attribute", "message"),
    [
        ("strategies", STRATEGY, ":Mien", "Did you mean 'Mine'?"),
        ("strategies", STRATEGY, ":MINE", "Did you mean 'Mine'?"),
        (
            "strategies",
            STRATEGY.replace("@dataclass(frozen=True)\nclass Mine", "class Mine"),
            ":Mine",
            "strength must be settings: write `@dataclass(frozen=True)` above the class",
        ),
        (
            "strategies",
            STRATEGY.replace("@dataclass(frozen=True)\nclass Mine", "@dataclass\nclass Mine"),
            ":Mine",
            "; write `@dataclass(frozen=True)` above the class",
        ),
        ("strategies", "import nothing_like_it\n", ":Mine", "ModuleNotFoundError: No module named"),
        ("strategies", "def broken(:\n", ":Mine", "line 1"),
        ("strategies", "1 / 0\n", ":Mine", "ZeroDivisionError"),
        ("strategies", "class Mine:\n    pass\n", ":Mine", "must name a subclass of Strategy"),
        (
            "readers",
            "from dgg_ray.core.interfaces import Reader\nclass R(Reader):\n    pass\n",
            ":R",
            "must define read",
        ),
        ("scorers", "score = 3\n", ":score", "must define the function score"),
        (
            "models",
            "from dgg_ray.core.interfaces import Model\nclass M(Model): pass\n",
            ":M",
            "fingerprint, load",
        ),
    ],
)
def test_an_unusable_plugin_is_a_fault_with_the_reason(mine, kind, text, attribute, message):
    assert message in faults_of(kind, mine(text) + attribute)


def test_a_missing_module_is_a_fault():
    assert "No module named 'not_there_at_all'" in faults_of("strategies", "not_there_at_all:EWC")


def test_a_misspelt_module_is_compared_with_the_files_beside_the_study(tmp_path):
    (tmp_path / "my_synapses.py").write_text(STRATEGY)
    plugins.add_search_folders(tmp_path)
    assert "Did you mean 'my_synapses'?" in faults_of("strategies", "my_synapsis:Mine")


def test_a_class_without_settings_of_its_own_needs_no_decorator(mine):
    name = mine(STRATEGY + "\n\nclass Undecorated(Mine):\n    pass\n")
    assert plugins.find("strategies", f"{name}:Undecorated")(strength=2.0).strength == 2.0


# -- hooks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "near"),
    [
        ("finish_task(self, weights)", ""),
        ("begin_tasks(self, weights, task, earlier, seed)", "begin_task"),
        ("edit_gradients(self, weights, gradients, step)", "edit_gradient"),
        ("before_step(self)", ""),
        ("on_task_end(self)", ""),
        ("after_task(self)", ""),
        ("load_states(self, state)", "load_state"),
        ("example(self, fresh, earlier, seed)", "examples"),
        ("replayed_example(self, sizes)", "replayed_examples"),
    ],
)
def test_a_hook_that_is_never_called_is_a_fault_with_the_nearest_name(mine, hook, near):
    message = faults_of("strategies", mine(f"{STRATEGY}    def {hook}:\n        pass\n") + ":Mine")
    assert f"{hook.partition('(')[0]} is called by nobody" in message
    assert (f"Did you mean {near!r}?" in message) == bool(near)


@pytest.mark.parametrize(
    "text",
    [
        "    def penalty(self):\n        return 0\n",
        "    def alpha_for(self, task):\n        return 0\n",
        "    def _end_task(self):\n        pass\n",
        # called by its own class
        "    def end_phase(self):\n        pass\n\n    def edit_gradient(self, weights, gradients, step):\n"
        "        self.end_phase()\n",
        "    def begin_task(self, *everything):\n        pass\n",
        "    def begin_task(self, weights, task, earlier, seed, more=1):\n        pass\n",
        "    @staticmethod\n    def edit_gradient(weights, gradients, step):\n        pass\n",
    ],
)
def test_helpers_and_well_formed_hooks_are_accepted(mine, text):
    assert plugins.find("strategies", mine(STRATEGY + text) + ":Mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    starts_plain: bool = True\n", "starts_plain is the class's own and no setting"),
        ("    simultaneous: bool = True\n", "simultaneous is the class's own and no setting"),
        ("    more: InitVar[float] = 1.0\n", "more must be a field: no other setting is part of a stage key"),
        ("    memory = {}\n", "memory must not be redefined"),
        ("    per_task: dict = field(default_factory=dict)\n", "per_task is the class's own and no setting"),
        ("    per_task = {'alpha': 0.0}\n", "per_task must name settings, and alpha is none"),
        ("    simultaneous = starts_plain = True\n", "must not be both simultaneous and starts_plain"),
        (
            "    starts_plain = True\n\n    def state(self):\n        return {}\n",
            "starts_plain must be left out: the first task's stage is shared, and passes nothing on to",
        ),
    ],
)
def test_a_declaration_that_would_have_no_effect_is_a_fault(mine, text, message):
    text = STRATEGY.replace("import dataclass", "import InitVar, dataclass, field") + text
    assert message in faults_of("strategies", mine(text) + ":Mine")


def test_a_class_that_workers_cannot_import_is_a_fault(mine):
    text = "\ndef make():\n    class Made(Strategy):\n        pass\n\n    return Made\n\n\nMade = make()\n"
    assert "must stand at the top of its module" in faults_of("strategies", mine(STRATEGY + text) + ":Made")


def test_a_hook_with_the_wrong_parameters_is_a_fault(mine):
    text = STRATEGY + "    def begin_task(self, weights, task):\n        pass\n"
    assert "begin_task must take (self, weights, task, earlier, seed)" in faults_of(
        "strategies", mine(text) + ":Mine"
    )


def test_the_hooks_are_the_methods_that_this_package_calls():
    assert set(strategy_checks.HOOKS) == {
        *("effect", "layout", "examples", "phases", "state", "load_state", "prepare", "begin_task"),
        *("begin_phase", "training_route", "edit_loss", "edit_gradient", "after_step", "end_task", "route"),
        *("replayed_examples", "protection", "faults"),
    }


# -- errors ----------------------------------------------------------------------------------------


def raised(mine, line: str) -> Exception:
    name = mine(f"import torch\n\n\ndef hook():\n    {line}\n")
    with pytest.raises(BaseException) as error:  # noqa: PT011
        importlib.import_module(name).hook()
    return error.value


@pytest.mark.parametrize(
    ("line", "lasting"),
    [
        ("{}['x']", True),
        ("raise TypeError('no')", True),
        ("torch.zeros(2) @ torch.zeros(3)", True),  # a RuntimeError
        ("raise RuntimeError('my own')", True),
        ("raise Exception('my own')", True),
        ("raise RuntimeError('CUDA error: an illegal memory access was encountered')", False),
        ("raise torch.OutOfMemoryError('CUDA out of memory')", False),
        ("raise MemoryError", False),
        ("open('/not/there')", False),
        ("raise ConnectionError('reset')", False),
        ("raise KeyboardInterrupt", False),
    ],
)
def test_a_bug_recurs_on_every_machine_and_a_machine_failure_need_not(mine, line, lasting):
    problem = raised(mine, line)
    assert error_records.is_permanent_error(problem) == lasting
    assert error_records.plugin_location(problem).endswith(", line 5, in hook")


def test_an_error_of_the_stage_itself_is_no_bug():
    assert not error_records.is_permanent_error(NonFiniteError("the loss is nan"))
    assert not error_records.is_permanent_error(RuntimeError("something of torch"))  # in no plug-in's line
    assert error_records.is_permanent_error(ValueError("anywhere"))


def test_an_error_is_reported_with_its_place_type_and_message(mine):
    told = error_records.located_error_record(raised(mine, "raise TypeError('strength must be a number')"))
    assert error_records.format_error_record(told).endswith(
        ", line 5, in hook: TypeError: strength must be a number"
    )
    assert (
        error_records.format_error_record({"error": "NonFiniteError", "message": "the loss is nan"})
        == "NonFiniteError: the loss is nan"
    )


def test_an_attribute_set_in_a_hook_is_answered_with_where_it_belongs(mine):
    text = STRATEGY + "    def begin_task(self, weights, task, earlier, seed):\n        self.anchor = 1\n"
    strategy = plugins.find("strategies", f"{mine(text)}:Mine")()
    with pytest.raises(FrozenInstanceError) as error:
        strategy.begin_task([], "words", (), 0)
    record = error_records.located_error_record(error.value)
    assert record["message"].startswith(
        "cannot assign to field 'anchor'; put what is remembered within a stage"
    )
    assert "self.memory" in record["message"]


# -- whole studies ---------------------------------------------------------------------------------

STUDY = """
name: mine
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
strategy: {name: "%s:Mine"}
adapter: {rank: 2}
training: {batch_size: 12}
orders: [[digits, words]]
protocol: {baselines: [], max_new_tokens: 1}
workers: {engine: simulated}
"""


def plan(folder, name):
    (folder / "study.yaml").write_text(STUDY % name)
    return load_study(folder / "study.yaml")


def test_a_study_uses_a_strategy_that_lies_beside_its_file(tmp_path, mine):
    study = plan(tmp_path, mine(STRATEGY))
    assert study.data.source_hashes[f"strategies/{plugins.plugin_name(study.strategy)}"]
    assert study.data.source_hashes["models/embedded"] == ""
    keys = [stage.effect["class"] for stage in study.runs[0].stages]
    assert (
        keys
        == [[plugins.plugin_name(study.strategy), next(filter(None, study.data.source_hashes.values()))]] * 2
    )


def test_a_strategy_that_miscounts_its_replayed_examples_is_a_fault(tmp_path, mine):
    text = STRATEGY + "    def replayed_examples(self, sizes):\n        return {}\n"
    for wrong, found in (
        ("{'charts': 3}", "a mapping"),
        ("{'words': 0.5}", "a mapping"),
        ("{}[0]", "KeyError: 0"),
    ):
        with pytest.raises(StudyError, match="strategy: replayed_examples must give") as error:
            plan(tmp_path, mine(text.replace("return {}", f"return {wrong}")))
        assert found in str(error.value)


PER_TASK = """
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar
from dgg_ray.plugin import Protection, Strategy


@dataclass(frozen=True)
class Mine(Strategy):
    per_task: ClassVar = {"strength": 0.5}
    strength: float | Mapping[str, float] = 0.1

    def protection(self, task, earlier):
        strength = self.strength
        return Protection(strength.get(task, 0.5) if isinstance(strength, Mapping) else strength)
"""


def test_a_per_task_setting_of_a_users_strategy_is_checked_like_alpha(tmp_path, mine):
    name = mine(PER_TASK)
    text = STUDY % name
    strategy = f'strategy: {{name: "{name}:Mine"}}'
    study = tmp_path / "study.yaml"
    study.write_text(text.replace(strategy, strategy.replace("}", ", strength: {wrods: 0.1}}")))
    with pytest.raises(StudyError, match=r"strategy\.strength\.wrods: no such task\. Did you mean 'words'\?"):
        load_study(study)
    study.write_text(text.replace(strategy, strategy.replace("}", ", strength: {words: 0.1}}")))
    warning = (
        "strategy.strength names no value for `digits`, which will be trained with strategy.strength = 0.5"
    )
    assert warning in load_study(study).data.warnings


@pytest.mark.whole
def test_a_per_task_setting_of_a_users_strategy_is_searched_like_alpha(tmp_path, mine):
    """Without noise, a strategy that pulls as DGG does gets the values that DGG's α gets."""
    search = "search: {method: stagewise, space: {strategy.%s: {per_task: [0, 0.1, 0.3, 1.0]}}}\n"
    search += "simulation: {noise: 0, evaluation_noise: false}\n"
    search += "protocol: {baselines: [constant, curve_optimum], max_new_tokens: 1}\n"
    tasks = "  - {name: charts, reader: embedded, train: 12, validation: 10, test: 10}\nstrategy:"
    text = STUDY.replace("protocol: {baselines: [], max_new_tokens: 1}\n", search)
    text = text.replace("strategy:", tasks, 1).replace("[[digits, words]]", "[[digits, words, charts]]")
    chosen = {}
    for setting, name in (("alpha", "dgg, buffer: 0"), ("strength", f'"{mine(PER_TASK)}:Mine"')):
        study = tmp_path / f"{setting}.yaml"
        study.write_text(text.replace('"%s:Mine"', name).replace("strategy.%s", f"strategy.{setting}"))
        out = tmp_path / setting
        run_study(load_study(study), out, local=True)
        columns = [f"strategy.{setting}.{task}" for task in ("words", "charts")]
        settings = pd.read_csv(out / "settings.csv")
        chosen[setting] = settings[columns].dropna().drop_duplicates().to_numpy().tolist()
    assert len(chosen["alpha"]) > 1
    assert chosen["alpha"][0] == chosen["strength"][0]  # the recommended values
    assert sorted(chosen["alpha"]) == sorted(chosen["strength"])


def test_a_users_scorer_is_part_of_the_evaluations_key(tmp_path, mine):
    text = "from dgg_ray.plugin import Score\n\n\n"
    text += "def mark(predictions, examples):\n    return Score({}, ())\n"
    study = plan(tmp_path, mine(STRATEGY))
    keys = set()
    for value in ("0.0", "0.5"):
        name = f"{mine(text.format(value))}:mark"
        tasks = {n: type(d)(d.name, d.digests, d.sizes, name) for n, d in study.data.tasks.items()}
        keys |= {with_data(study, tasks=tasks).runs.evaluation("words", "test").key}
    assert len({*keys, study.runs.evaluation("words", "test").key}) == 3


def test_a_partial_function_is_hashed_with_the_file_that_names_it(tmp_path, mine):
    text = "from functools import partial\nfrom dgg_ray.scorers.exact_match import score as full\n\n\n"
    text += "def half(predictions, examples, by):\n    return full(predictions, examples)\n\n\n"
    text += "mark = partial(half, by={})\n"
    name = mine(text.format(2))
    before = plugins.plugin_hash("scorers", f"{name}:mark")
    assert list(sources.own_files(plugins.find("scorers", f"{name}:mark"), name)) == [name]
    (tmp_path / f"{name}.py").write_text(text.format(3))
    assert sources.source_digest(partial(max), name) not in ("", before)


def test_settings_of_a_users_model_are_part_of_its_keys(tmp_path, mine):
    text = "from dataclasses import dataclass\nfrom dgg_ray.models.embedded import Embedded\n\n\n"
    text += "@dataclass(frozen=True)\nclass Tiny(Embedded):\n    side: int = 28\n    path: str = ''\n"
    cls, study = plugins.find("models", mine(text) + ":Tiny"), plan(tmp_path, mine(STRATEGY))
    models = [cls(28), cls(56), cls(28, path="elsewhere")]
    a, b, elsewhere = (replace(study, model=model).local_fingerprint() for model in models)
    assert a == elsewhere != b


def test_a_metric_that_raises_is_a_fault_with_its_line(mine, monkeypatch):
    monkeypatch.setattr(plugins, "OUTSIDE_NAMES", {})
    name = mine("def worth(matrix):\n    return matrix.scores[0]\n")
    assert "raised AttributeError: 'ScoreMatrix'" in (
        message := search_rules.why_unfit(f"{name}:worth", 2, False)
    )
    assert f"{name}.py, line 2, in worth" in message


@pytest.mark.parametrize(
    ("line", "fits"),
    [
        ("np.nanmean(matrix.R[-1])", False),
        ("np.nanmean(matrix.R[..., -1, :], axis=-1)", True),
        ("0.5", False),
    ],
)
def test_a_metric_must_give_stacked_runs_the_values_that_each_has_alone(mine, monkeypatch, line, fits):
    monkeypatch.setattr(plugins, "OUTSIDE_NAMES", {})
    name = mine(f"import numpy as np\n\n\ndef worth(matrix):\n    return {line}\n")
    assert ("count its axes from the last" in search_rules.why_unfit(f"{name}:worth", 2, False)) != fits


def test_a_file_that_is_edited_after_it_was_read_is_a_fault(tmp_path, mine):
    name = mine(STRATEGY)
    plan(tmp_path, name)
    plan(tmp_path, name)
    (tmp_path / f"{name}.py").write_text(STRATEGY.replace("1.0", "2.0"))
    with pytest.raises(
        StudyError, match=f"{name}.py: was edited after this process read it; start Python anew"
    ):
        plan(tmp_path, name)


@pytest.mark.parametrize("written", [True, False], ids=["compiled", "uncompiled"])
@pytest.mark.parametrize(
    ("old", "new"),
    [("1.0", "20.0"), ("g += ", "g -=  "), ("self.str", "2 * self.str"), ("# note", "# another note")],
)
def test_a_file_that_is_edited_between_its_import_and_the_study_is_a_fault(
    tmp_path, mine, monkeypatch, old, new, written
):
    monkeypatch.setattr(sys, "dont_write_bytecode", not written)
    pull = """    def edit_gradient(self, weights, gradients, step):  # note
        for g in gradients:
            g += self.strength
"""
    name = mine(STRATEGY + pull)
    file = tmp_path / f"{name}.py"
    importlib.import_module(name)
    file.write_text(file.read_text().replace(old, new))
    if old == "# note" or (old == "1.0" and not written):  # a value beside the functions leaves no trace then
        plan(tmp_path, name)
    else:
        with pytest.raises(StudyError, match=f"{name}.py: was edited after this process read it"):
            plan(tmp_path, name)


def test_a_users_reader_is_keyed_by_the_examples_that_it_returns(tmp_path, mine):
    text = """
from dataclasses import dataclass
from dgg_ray.core.interfaces import SPLITS, Example, Reader, Task


@dataclass(frozen=True)
class Mine(Reader):
    answer: str = "a"

    def read(self, name):
        examples = {s: [Example("1", "what?", self.answer if s == "train" else "b")] for s in SPLITS}
        return Task(name, examples, dict.fromkeys(SPLITS, "always the same"))
"""
    cls = plugins.find("readers", mine(text) + ":Mine")
    a, b = read_task(cls("a"), "words"), read_task(cls("b"), "words")
    assert a.digests["train"] != b.digests["train"]
    assert a.digests["test"] == b.digests["test"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("return None", "must return a Task"),
        ("return {}['words']", "raised KeyError: 'words'"),
        ("return Task(name, {}, {})", "must return examples for train"),
        ("return Task(name, {s: [Example('1', 'q', 3)] for s in SPLITS}, {})", "answer must be text, is int"),
    ],
)
def test_a_reader_that_returns_no_task_is_a_fault(mine, line, message):
    text = "from dgg_ray.core.interfaces import SPLITS, Example, Reader, Task\n\n\nclass Mine(Reader):\n"
    reader = plugins.find("readers", mine(f"{text}    def read(self, name):\n        {line}\n") + ":Mine")()
    with pytest.raises(StudyError, match=message.replace("(", "\\(")):
        read_task(reader, "words")


def test_a_setting_that_is_no_json_value_is_a_fault(tmp_path, mine):
    text = STRATEGY.replace("strength: float = 1.0", "words: frozenset[str] = frozenset({'a'})")
    with pytest.raises(StudyError, match="strategy: must have settings, and an effect, that are JSON values"):
        plan(tmp_path, mine(text))


@pytest.mark.parametrize("value", ["None", "'strength'", "[1]"])
def test_an_effect_that_is_no_dict_is_a_fault(tmp_path, mine, value):
    text = f"{STRATEGY}    def effect(self, task, earlier):\n        return {value}\n"
    with pytest.raises(StudyError, match=r"Mine\.effect must return a dict, not "):
        plan(tmp_path, mine(text))


@pytest.mark.parametrize("value", ["AdapterLayout", "'lora_slots'", "self.context.layout"])
def test_a_layout_that_is_none_is_a_fault(tmp_path, mine, value):
    text = STRATEGY.replace("import Strategy", "import AdapterLayout, Strategy")
    text = text.replace("dgg_ray.core.strategy", "dgg_ray.plugin")
    with pytest.raises(
        StudyError, match=r"strategy.name: Mine\.layout must return None or a layout"
    ) as error:
        plan(tmp_path, mine(f"{text}    def layout(self):\n        return {value}\n"))
    assert len(error.value.faults) == 1


LEFT_OUT = "strategy.strength is in no effect of"


@pytest.mark.parametrize(
    ("effect", "warned"),
    [
        ("{}", True),
        ("{'strength': self.strength > 0}", False),  # 0 differs from 1
        ("{'strength': self.strength} if earlier else {}", False),
    ],
)
def test_a_setting_that_an_effect_leaves_out_is_warned_of(tmp_path, mine, effect, warned):
    text = f"{STRATEGY}    def effect(self, task, earlier):\n        return {effect}\n"
    study = plan(tmp_path, mine(text))
    assert any(LEFT_OUT in warning for warning in study.data.warnings) == warned
    stages = [study.at({"strategy.strength": value}).runs[0].stages for value in (0.0, 5.0)]
    assert (stages[0][-1].key == stages[1][-1].key) == warned  # the warning is true


def test_a_value_that_a_class_refuses_is_not_tried(tmp_path, mine):
    refuse = "        if self.strength > 1:\n            raise ValueError('too strong')\n"
    effect = "    def effect(self, task, earlier):\n        return {}\n"
    text = f"{STRATEGY}    def __post_init__(self):\n{refuse}{effect}"
    assert any(LEFT_OUT in warning for warning in plan(tmp_path, mine(text)).data.warnings)


def test_a_choice_that_an_effect_leaves_out_is_warned_of_and_the_default_effect_leaves_out_none(
    tmp_path, mine
):
    text = STRATEGY.replace("strength: float = 1.0", 'norm: Literal["l1", "l2"] = "l2"')
    text = text.replace("import dataclass\n", "import dataclass\nfrom typing import Literal\n")
    said = plan(
        tmp_path, mine(text + "    def effect(self, task, earlier):\n        return {}\n")
    ).data.warnings
    assert any("strategy.norm is in no effect of" in warning for warning in said)
    assert not any("in no effect of" in warning for warning in plan(tmp_path, mine(text)).data.warnings)


FISHER = STRATEGY.replace("strength: float = 1.0", "fisher: Path = Path('/none')").replace(
    "import dataclass\n", "import dataclass\nfrom pathlib import Path\n"
)


def test_a_file_among_the_settings_is_keyed_by_its_content(tmp_path, mine):
    cls = plugins.find("strategies", mine(FISHER) + ":Mine")
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(content)
    a, b, c = (cls(tmp_path / name).effect("words", ()) for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("file", ["deep/mask.pt", "notes.md", "config.json"])
def test_a_folder_among_the_settings_is_keyed_by_its_content(tmp_path, mine, file):
    cls = plugins.find("strategies", mine(FISHER) + ":Mine")
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name / file).parent.mkdir(parents=True)
        (tmp_path / name / file).write_text(content)
    a, b, c = (cls(tmp_path / name).effect("words", ()) for name in "abc")
    assert a == b != c
    (tmp_path / "b" / file).write_text("2")
    assert cls(tmp_path / "b").effect("words", ()) == c


def test_a_file_among_the_settings_is_read_once_and_again_after_a_change(tmp_path, mine, monkeypatch):
    cls = plugins.find("strategies", mine(FISHER) + ":Mine")
    file, read = tmp_path / "fisher", []
    file.write_text("1")
    hashing = file_hashes.hashlib.file_digest
    monkeypatch.setattr(
        file_hashes.hashlib, "file_digest", lambda opened, kind: (read.append(kind), hashing(opened, kind))[1]
    )
    before = [cls(file).effect("words", ("digits",)) for _ in range(40)]
    assert len(read) == 1
    file.write_text("20")
    assert cls(file).effect("words", ()) != before[0]
    assert len(read) == 2


@pytest.mark.parametrize(
    ("value", "each", "message"),
    [
        (0.5, (0.5,), "1 scores of 2 examples"),
        (float("nan"), (0.5, 0.5), "nan among its scores"),
        (50.0, (50.0, 50.0), "50.0 among"),
    ],
)
def test_an_invalid_score_ends_the_evaluation(value, each, message):
    with pytest.raises(StageError, match=f"scorer `mine` must give .* gave {message}"):
        Score(value, each).checked("mine", 2)


def test_stored_work_of_an_edited_plugin_is_reported(tmp_path, mine):
    study = plan(tmp_path, mine(STRATEGY))
    name = plugins.plugin_name(study.strategy)
    store = study.store(tmp_path / "out")
    assert edited_plugins.describe_unused_work(study, store) == []
    (run,) = study.runs
    for stage in run.stages:
        store.publish(stage, {"code": {f"strategies/{name}": "older"}}, None)
    cell = {"evaluation": "e", "task": "words", "split": "test", "score": 0.5, "n": 10}
    store.publish_evaluations(run.stages[0], [cell], None, {"code": {"scorers/exact_match": "older"}})
    assert edited_plugins.describe_unused_work(study, store) == [
        f"strategy `{name}` changed since 2 stages were trained; they are not used.",
        "scorer `exact_match` changed since 1 evaluation was scored; it is not used.",
    ]


@pytest.mark.whole
def test_an_edited_strategy_is_trained_anew_and_plan_and_run_say_so(tmp_path):
    """As a user does it: in processes of their own."""

    def say(command: str) -> str:
        arguments = [command, str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
        arguments += ["--local"] if command == "run" else []
        done = subprocess.run(
            [sys.executable, "-m", "dgg_ray", *arguments], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    (tmp_path / "study.yaml").write_text((STUDY % "ewc").replace("workers: {engine: simulated}\n", ""))
    file = tmp_path / "ewc.py"
    file.write_text(STRATEGY)
    assert "2 stages trained" in say("run")
    file.write_text(STRATEGY.replace("class Mine", "# a comment\nclass Mine"))
    assert "changed" not in say("plan")
    file.write_text(
        STRATEGY + "    def edit_gradient(self, weights, gradients, step):\n        gradients[0] *= 2\n"
    )
    assert "strategy `ewc:Mine` changed since 2 stages were trained; they are not used." in say("plan")
    again = say("run")
    assert "2 stages trained" in again
    assert "changed since 2 stages were trained" in again


@pytest.mark.whole
def test_an_error_in_a_plugin_ends_its_stage_with_file_and_line(tmp_path, mine, capsys):
    text = STRATEGY + "    def edit_gradient(self, weights, gradients, step):\n        self.strenght\n"
    (tmp_path / "study.yaml").write_text((STUDY % mine(text)).replace("workers: {engine: simulated}\n", ""))
    out = str(tmp_path / "out")
    assert cli.main(["run", str(tmp_path / "study.yaml"), "--local", "--out", out]) == 1
    message = "".join(capsys.readouterr())
    place = f"line {text.splitlines().index('        self.strenght') + 1}, in edit_gradient"
    assert f"{place}: AttributeError: 'Mine' object has no attribute 'strenght'" in " ".join(message.split())
    assert cli.main(["status", out]) == 0
    assert place in capsys.readouterr().out


@pytest.mark.ray
def test_on_ray_a_strategy_beside_its_study_is_found_and_its_error_is_not_retried(tmp_path):
    text = STRATEGY + "    def begin_task(self, weights, task, earlier, seed):\n        {}[earlier]\n"
    text = text.replace("{}[earlier]", "{(): 1}[earlier]")  # the first task is learned
    (tmp_path / "ewc.py").write_text(text)
    (tmp_path / "study.yaml").write_text((STUDY % "ewc").replace("engine: simulated", "groups: 1"))
    done = subprocess.run(
        [sys.executable, "-m", "dgg_ray", "run", "study.yaml", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    message = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, message
    place = f"line {len(text.splitlines())}, in begin_task: KeyError: ('digits',)"
    assert place in message
    files = (tmp_path / "out" / "logs").glob("group-*.jsonl")
    events = [json.loads(line)["event"] for file in files for line in file.read_text().splitlines()]
    # The untouched model and the first task are published by the one process that began.
    assert [events.count(name) for name in ("started", "published", "failed")] == [1, 2, 1]
