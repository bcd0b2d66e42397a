"""The table of the compared methods: what is known of them, what they need, what they train and store."""

from dataclasses import dataclass

from method_samples import MethodWorld, make_learner, make_tasks

from dgg_ray.analysis.methods_table import METHOD_COLUMNS, describe_needs, methods_table
from dgg_ray.config.study import Study
from dgg_ray.core.interfaces import Adapter
from dgg_ray.core.stage import Run
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.lwf import LwF
from dgg_ray.strategies.o_lora import OLoRA
from dgg_ray.strategies.replay import Replay


@dataclass
class Runs(list):
    """The runs of a method and its study, as far as the table reads them."""

    study: Study

    def __init__(self, study, runs):
        super().__init__(runs)
        self.study = study


@dataclass
class StudyOf:
    strategy: object
    stage_adapter: Adapter


def test_trained_and_stored_numbers_come_from_the_records_of_the_last_stages(tmp_path):
    world = MethodWorld(make_learner(), make_tasks(), tmp_path / "store")
    compared = {}
    for label, strategy in {"plain": Finetune(), "slots": OLoRA()}.items():
        stages = world.train(strategy)
        run = Run("00000000", ("words", "digits"), 0, stages)
        compared[label] = Runs(StudyOf(strategy, world.adapter), [run])
    compared["not run"] = Runs(StudyOf(Replay(), world.adapter), [])
    table = methods_table(world.store, compared).set_index("label")
    assert list(table.reset_index()) == METHOD_COLUMNS
    numbers = sum(p.numel() for p in world.learner.engine.parameters)  # of a LoRA of rank 2
    assert table.loc["plain", ["trainable", "stored"]].tolist() == [numbers, numbers]
    assert table.loc["slots", ["trainable", "stored"]].tolist() == [numbers, 2 * numbers]
    assert table["stages"].tolist() == [2, 2, 0]
    assert table.loc[["not run"], "stored"].isna().all()


def test_needs_name_old_examples_step_cost_and_engines():
    assert describe_needs(Finetune()) == ""
    assert describe_needs(Replay(buffer=3)) == "old examples"
    assert describe_needs(LwF()) == "1.33 × a step, not on zero3"
