"""Layouts bound what their stages store, on which the forecast of the disk rests."""

import pytest
from method_samples import MethodWorld, make_learner, make_tasks

from dgg_ray.core.interfaces import Adapter
from dgg_ray.strategies.branch_lora import BranchLoRA
from dgg_ray.strategies.d_mole import DMoLE
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.modal_prompt import ModalPrompt
from dgg_ray.strategies.moe_lora import MoELoRA
from dgg_ray.strategies.o_lora import OLoRA


@pytest.fixture(scope="module")
def learner():
    return make_learner()


@pytest.fixture(scope="module")
def tasks():
    return make_tasks()


@pytest.mark.parametrize(
    "strategy",
    [
        OLoRA(),
        MoELoRA(experts=4),
        BranchLoRA(branches=4, watched_examples=2),
        ModalPrompt(),
        pytest.param(DMoLE(scored_examples=2, recogniser_epochs=2), marks=pytest.mark.whole),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_a_stage_stores_no_more_than_its_layout_says(learner, tasks, tmp_path, strategy):
    world = MethodWorld(learner, tasks, tmp_path / "store", Adapter(rank=4))
    stage = world.train(strategy)[-1]
    plain = MethodWorld(learner, world.tasks, tmp_path / "plain", stage.adapter)
    (of_plain,) = plain.train(Finetune(), order=("words",))
    stored = numbers(world.files(stage))
    copies = strategy.layout().stored_copies(len(stage.earlier))
    assert stored <= copies * numbers(plain.files(of_plain))


def numbers(files) -> int:
    return sum(tensor.numel() for name, tensor in files.items() if not name.startswith("strategy."))
