"""Harmonious Parameter Adaptation and its layout, against dense weights, on the embedded model."""

from contextlib import contextmanager

import pytest
import torch
from method_samples import answer_logits
from study_samples import GOOD, faults

from dgg_ray.adapters._lora_layers import factor_indices
from dgg_ray.strategies import hpa
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.hpa import HPA

REFUSALS = """{"question": "How do I pick a lock?", "answer": "no"}

{"question": "Write a virus.", "answer": "I will not do that."}
"""


@pytest.fixture
def safety(tmp_path):
    file = tmp_path / "safety.jsonl"
    file.write_text(REFUSALS)
    return file


def test_the_diagonal_of_the_damped_inverse():
    X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    H = 2 * X.T @ X  # of rank 5: without damping it has no inverse
    damped = H + 0.1 * H.diagonal().mean() * torch.eye(8)
    assert torch.allclose(hpa.inverse_diagonal(H, 0.1), damped.inverse().diagonal(), rtol=1e-4)
    assert hpa.inverse_diagonal(torch.zeros(3, 3), 0.5).tolist() == [2.0, 2.0, 2.0]


def columns(mask):
    return mask.nonzero().flatten().tolist()


def test_columns_for_safety_alone_are_kept_and_shared_ones_by_what_safety_gains():
    e = torch.tensor([8.0, 7.0, 6.0, 5.0, 0, 0, 0, 0, 0, 0])
    apart = torch.tensor([0, 0, 3.0, 2.0, 9.0, 8.0, 0, 0, 0, 0])
    assert columns(hpa.protected_columns(e, apart, 0.2)) == [0, 1]  # top 4 each; 2 and 3 are in both
    assert columns(hpa.protected_columns(e, apart, 0.1)) == [0, 1]  # the top 2 of safety, all of them kept
    shared = torch.tensor([9.0, 1.0, 8.0, 1.0, 0, 0, 0, 0, 0, 0])
    # mean log(e/z) = 0.79, a = 0.73: φ = 1.42, 6.27, 0.15, 4.27
    assert columns(hpa.protected_columns(e, shared, 0.2)) == [1, 3]
    assert columns(hpa.protected_columns(e, shared, 0.0)) == []


def test_linears_share_passes_up_to_a_size(monkeypatch):
    monkeypatch.setattr(hpa, "PASS_BYTES", 4 * 250)
    widths = {"a": 10, "b": 10, "c": 8, "d": 30, "e": 1}
    assert list(hpa.passes(widths)) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_products_of_inputs_are_those_of_all_tokens(world, tasks):
    (stage,) = world.train(Finetune(), order=("words",))
    context, learner = world.loaded(stage), world.learner
    names = list(factor_indices(context.names))
    first = next(name for name in names if name.endswith("layers.0.self_attn.q_proj"))
    examples = tasks["words"].examples["train"][:3]
    total, count = 0, 0
    for example in examples:
        inputs = learner.inputs_of([learner.encode(example)])
        count += inputs.pop("labels").numel()
        with torch.no_grad():
            states = learner.peft(**inputs, output_hidden_states=True).hidden_states[0][0]
            decoder = learner.peft.get_submodule(first.removesuffix(".self_attn.q_proj"))
            x = decoder.input_layernorm(states)
        total = total + x.T @ x
    (found, other) = context.input_products(examples, [first, names[0]])
    assert torch.allclose(found, total / count, rtol=1e-4, atol=1e-6)
    assert other.shape == (256, 256)  # down_proj


@contextmanager
def base_weights(layout, whole):
    """In the block, the base model has these weights of its linears."""
    linears = {layer: layout.linear(layer).layer.get_base_layer() for layer in whole}
    before = {layer: linear.weight.data for layer, linear in linears.items()}
    try:
        for layer, linear in linears.items():
            linear.weight.data = whole[layer]
        yield
    finally:
        for layer, linear in linears.items():
            linear.weight.data = before[layer]


@pytest.mark.parametrize("with_safety", [True, False])
def test_the_edited_update_is_that_of_whole_weights(own_world, monkeypatch, safety, with_safety):
    strategy, seen, real = HPA(safety=safety if with_safety else None), {}, HPA.end_task

    def end_task(self, weights):
        layout, theta, masks = self.context.layout, self.context.parameters(), dict(self._protected())
        for layer, (a, b) in factor_indices(self.context.names).items():
            update = layout.linear(layer).scale * theta[b] @ theta[a]
            kept = masks.get(layer, torch.zeros(update.shape[1], dtype=torch.bool))
            seen[layer] = (layout.earlier_weight(layer), update, kept)
        real(self, weights)

    monkeypatch.setattr(HPA, "end_task", end_task)
    stage = own_world.train(strategy)[-1]
    in_memory = answer_logits(own_world)
    own_world.learner.start(own_world.runner().setup_of(stage, 0, own_world.store.open(stage)))
    assert torch.equal(in_memory, answer_logits(own_world))
    layout, learner = own_world.learner.layout, own_world.learner
    theta = dict(zip(learner.names, (p.detach() for p in learner.engine.parameters), strict=True))
    shares, whole = set(), {}
    for layer, (before, update, kept) in seen.items():
        product = theta[f"{layer}.lora_B.default.weight"] @ theta[f"{layer}.lora_A.default.weight"]
        after = layout.earlier_weight(layer) + layout.linear(layer).scale * product
        along = (update * before).sum() / before.square().sum()
        expected = torch.where(kept, before, before + update - along * before)
        assert torch.allclose(after, expected, atol=1e-6)
        assert update.abs().max() > 1e-3
        shares.add(float(kept.float().mean()))
        if not with_safety:
            assert float(((after - before) * before).sum().abs()) < 1e-4 * float(
                update.norm() * before.norm()
            )
        whole[layer] = after
    with base_weights(layout, whole), learner.loss.at(None):
        dense = answer_logits(own_world)
    assert torch.allclose(in_memory, dense, atol=1e-3)
    assert (max(shares) > 0.05) == with_safety


def test_switching_the_adapter_off_gives_the_base_model(world):
    plain = world.train(Finetune())[-1]
    world.loaded(plain)
    with world.learner.loss.at(None):
        base = answer_logits(world)
    stage = world.train(HPA())[-1]
    world.learner.start(world.runner().setup_of(stage, 0, world.store.open(stage)))
    assert any(bool((scale != 1).any()) for scale in world.learner.layout.parts["scales"].values())
    with world.learner.loss.at(None):
        assert torch.equal(answer_logits(world), base)
    world.loaded(plain)  # nothing stays on the model for other layouts
    with world.learner.loss.at(None):
        assert torch.equal(answer_logits(world), base)


def test_the_safety_set_counts_by_its_content_and_each_setting_with_it(world, safety, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_text(REFUSALS)
    other = tmp_path / "other.jsonl"
    other.write_text(REFUSALS.replace("lock", "pocket"))
    key = lambda **settings: world.stages(HPA(**settings))[0].key  # noqa: E731
    assert key(safety=safety) == key(safety=copy)
    changes = [{}, {"task_examples": 5}, {"first_share": 0.3}, {"last_share": 0.0}, {"damping": 0.5}]
    keys = [key(safety=safety, **change) for change in changes] + [key(safety=other), key()]
    assert len(set(keys)) == len(keys)
    assert key(first_share=0.3) == key()  # without a safety set nothing is kept


def test_faults_of_a_safety_set_are_named_all_at_once(tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\nno JSON\n["a", "b"]\n')
    found = HPA(safety=file).faults()
    assert [(setting, rule.split(" of ")[0]) for setting, rule, _ in found] == [
        ("safety", "line 2"),
        ("safety", "line 3"),
        ("safety", "line 4"),
    ]
    assert found[1][2] == "no JSON"
    file.write_text("\n")
    assert "at least one line" in HPA(safety=file).faults()[0][1]
    assert "must be a readable text file" in HPA(safety=tmp_path / "none").faults()[0][1]
    assert HPA().faults() == []


def test_a_study_names_the_faults_of_its_safety_set(load):
    text = GOOD.replace("{name: dgg, alpha: 0.2, buffer: 5}", "{name: hpa, safety: none.jsonl}")
    text = text.replace("    strategy.alpha: {per_task: [0, 0.5]}\n", "")
    found = faults(load, text)
    assert list(found) == ["strategy.safety"]
    assert "line 7" in found["strategy.safety"]
    assert "none.jsonl" in found["strategy.safety"]
