"""Adapters that leave a study: exactly what was evaluated, with a card that says no more than is known."""

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from method_samples import ORDER, MethodWorld, answer_logits, make_learner, make_tasks
from peft import PeftModel
from safetensors.torch import load_file

import dgg_ray
from dgg_ray import cli, load_study, run_study
from dgg_ray.core.errors import ResultsError, StudyError
from dgg_ray.core.interfaces import AnswerStyles
from dgg_ray.models.embedded import Embedded
from dgg_ray.report import page
from dgg_ray.report.model_card import Card
from dgg_ray.strategies.branch_lora import BranchLoRA
from dgg_ray.strategies.disco import DISCO
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.hide import HiDe
from dgg_ray.strategies.hpa import HPA
from dgg_ray.strategies.llava_c import LlavaC
from dgg_ray.training.exported_adapter import form_of, load_adapter

SIZE = {"train": 12, "validation": 10, "test": 10}
STUDY = {
    "name": "toy",
    "question": "Does a LoRA per task forget less?",
    "model": "embedded",
    "tasks": [{"name": name, "reader": "embedded", **SIZE} for name in ("words", "charts")],
    "strategy": "o_lora",
    "adapter": {"rank": 2},
    "training": {"batch_size": 8, "learning_rate": 5e-3},
    "protocol": {"max_new_tokens": 2, "baselines": ["finetune", "disco"]},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> dgg_ray.Outcome:
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figure_names", list)  # figures take seconds
        return run_study(load_study(STUDY), out, local=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return MethodWorld(make_learner(), make_tasks(), tmp_path_factory.mktemp("world") / "store")


def code_of(folder) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


def run_card(folder, monkeypatch) -> dict:
    """Run the code of a card in its folder; return its names."""
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(code_of(folder), names)
    return names


def stored_logits(outcome, setting) -> tuple[torch.Tensor, MethodWorld]:
    """Logits (n, V) of some answers, of the learner with the stored stage; and the learner in its world."""
    loaded, run = outcome._run(None, None, setting)
    learner = make_learner()
    world = MethodWorld(learner, make_tasks(), outcome.out / "unused")
    stage = run.stages[-1]
    world.store = outcome.store
    world.training = loaded.training
    world.loaded(stage, loaded.strategy, steps=0)
    return answer_logits(world), world


@pytest.mark.parametrize(("setting", "rank"), [("best", 4), ("finetune", 2)])
def test_peft_alone_gives_the_learners_logits(study, tmp_path, monkeypatch, setting, rank):
    folder = tmp_path / "adapter"
    assert cli.main(["export", str(study.out), "--setting", setting, "--to", str(folder)]) == 0
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (rank, 2 * rank)  # two slots of rank 2, at the same scale
    wanted, world = stored_logits(study, None if setting == "best" else setting)
    model = run_card(folder, monkeypatch)["model"]
    assert isinstance(model, PeftModel)
    learner = world.learner
    learner.layout.detach()
    encoded = [learner.encode(world.tasks[name].examples["test"][0]) for name in ORDER]
    inputs = learner.inputs_of(encoded)
    labels = inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs).logits
    found = logits[:, :-1][labels[:, 1:] != -100]
    assert torch.allclose(found, wanted, atol=1e-4)
    with torch.no_grad(), model.disable_adapter():
        untouched = model(**inputs).logits[:, :-1][labels[:, 1:] != -100]
    assert not torch.allclose(untouched, wanted, atol=1e-2)


def test_a_routed_method_is_loaded_with_its_routes_and_gives_the_stored_answers(study, tmp_path, monkeypatch):
    exported = study.export(tmp_path / "adapter", setting="disco")
    assert exported.form == "own"
    assert "PEFT alone cannot load" in (exported.folder / "README.md").read_text()
    names = run_card(exported.folder, monkeypatch)
    assert len(names["answers"]) == 1
    adapter = names["adapter"]
    for task in ("words", "charts"):
        reader = study.study.readers[task]
        examples = reader.read(task).examples["test"]
        weights = adapter.route(examples)
        assert weights.shape == (10, 2)
        assert torch.allclose(weights.sum(1), torch.ones(10))
        rows = study.predictions(task, setting="disco", split="test")
        last = rows[rows["stage"] == 1]
        assert adapter.answer(examples, 2) == list(last["prediction"])


def test_the_concatenated_lora_is_the_sum_of_the_slots(study, tmp_path):
    stored = study.adapter()
    study.export(tmp_path / "adapter")
    own, frozen = load_file(stored / "adapter_model.safetensors"), load_file(stored / "layout.safetensors")
    joined = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert joined.keys() == own.keys()
    layers = {name.rsplit(".frozen_", 1)[0] for name in frozen}
    assert layers
    for layer in layers:
        a, b = (own[f"{layer}.lora_{factor}.weight"] for factor in "AB")
        products = b @ a + frozen[f"{layer}.frozen_B"] @ frozen[f"{layer}.frozen_A"]
        both = joined[f"{layer}.lora_B.weight"] @ joined[f"{layer}.lora_A.weight"]
        assert torch.allclose(both, products, atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "first", "second"),
    [
        (Finetune(), "stored", "stored"),
        (LlavaC(), "concatenated", "concatenated"),
        (DISCO(), "stored", "own"),  # its first stage is plain fine-tuning
        (HiDe(merge="factorwise"), "stored", "own"),
        (HPA(), "own", "own"),  # it scales the base weights too
        (BranchLoRA(), "own", "own"),
    ],
)
def test_only_weights_that_are_one_sum_become_plain_lora(world, strategy, first, second):
    assert [form_of(stage) for stage in world.stages(strategy)] == [first, second]


def test_the_card_states_base_data_and_scores_of_the_run(study, tmp_path):
    folder = study.export(tmp_path / "adapter").folder
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["base_model"] == "embedded"
    assert header["library_name"] == "peft"
    assert "Does a LoRA per task forget less?" in card
    for name, task in study.study.data.tasks.items():
        assert f"| {name} | 12 | 10 | 10 | `{task.digests['train']}` |" in card
    R = study.scores()
    for task in ("words", "charts"):
        assert f"| {task} | test | {100 * R.loc['charts', task]:.1f} | 10 |" in card
    assert "(1 block" in card or "1 independent block" in card
    assert "CI" not in card  # one run is no interval
    assert "Safety, bias" in card.split("## Not tested")[1]


def test_the_card_says_which_training_examples_were_rewritten(study):
    loaded, run = study._run(None, None, None)
    styles = AnswerStyles(0.25, ("yes_no", "sentence"))
    readers = loaded.readers | {"words": replace(loaded.readers["words"], answer_styles=styles)}
    lines = Card(study, replace(loaded, readers=readers), run, "own").data()
    said = "In words, up to 25.0 % of the training examples were rewritten as yes_no and sentence."
    assert [line for line in lines if "rewritten" in line] == [said]
    assert not any("rewritten" in line for line in Card(study, loaded, run, "own").data())


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        ({"setting": "finetun"}, ResultsError, "no setting is called 'finetun'.*Did you mean 'finetune'"),
        ({"order": 3}, ResultsError, "there is no order 3; .* has 1, the first is 0"),
        ({"seed": 5}, ResultsError, "no run of seed 5"),
    ],
)
def test_what_the_study_lacks_is_not_exported(study, tmp_path, ask, error, message):
    with pytest.raises(error, match=message):
        study.export(tmp_path / "adapter", **ask)
    assert not (tmp_path / "adapter").exists()


def test_a_folder_with_files_is_refused_with_exit_code_2(study, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["export", str(study.out), "--to", str(tmp_path)]) == 2
    assert "--to: must be a new or an empty folder, got one with notes.txt" in capsys.readouterr().err
    with pytest.raises(StudyError, match="got the file"):
        study.export(tmp_path / "notes.txt")


def test_nothing_is_exported_before_a_setting_was_evaluated(tmp_path):
    from dgg_ray.config import saved_study

    searched = {**STUDY, "strategy": "dgg", "search": {"space": {"strategy.alpha": [0, 1]}}}
    searched["protocol"] = {"max_new_tokens": 2}
    saved_study.save_study(load_study(searched), tmp_path)
    with pytest.raises(ResultsError, match="no setting has been evaluated completely yet"):
        dgg_ray.open(tmp_path).export(tmp_path / "adapter")


def test_another_base_model_is_refused(study, tmp_path):
    class Other(Embedded):
        def fingerprint(self):
            return "f" * 64

    folder = study.export(tmp_path / "adapter", setting="disco").folder
    with pytest.raises(ResultsError, match="has ffffffffffffffff…: give load_adapter the model"):
        load_adapter(folder, Other())
    plain = study.export(tmp_path / "plain").folder
    with pytest.raises(ResultsError, match=r"PEFT folder, which PeftModel\.from_pretrained loads"):
        load_adapter(plain)


@pytest.mark.whole
def test_a_removed_adapter_can_be_trained_again_as_the_message_says(study, tmp_path):
    stage = study._run(None, None, "finetune")[1].stages[-1]
    wanted = load_file(study.adapter(setting="finetune") / "adapter_model.safetensors")
    study.study.store(study.out).remove_adapter(stage.key)
    study = dgg_ray.open(study.out)
    with pytest.raises(ResultsError, match=f'`dgg-ray gc` removed it.*discard\\("{stage.key}"\\)'):
        study.export(tmp_path / "adapter", setting="finetune")
    opened = dgg_ray.open(study.out)
    opened.study.store(opened.out).discard(stage.key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figure_names", list)
        again = run_study(load_study(STUDY), study.out, local=True)
    folder = again.export(tmp_path / "adapter", setting="finetune").folder
    found = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
