"""One of several processes that train methods together: each engine and method in turn, in one store each.

    RANK=0 WORLD_SIZE=2 … python tests/two_process_methods.py FOLDER ENGINE [ENGINE …]

Each method trains two tasks of `EXAMPLES` examples in two steps. The second step's batch has an odd number of
examples, so that the processes' shares differ, and one of them has a micro-batch of weight 0.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from method_samples import ORDER, MethodWorld

from dgg_ray.core.interfaces import Adapter, Training
from dgg_ray.core.stage import Evaluation, WorkItem
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.readers.embedded import Embedded as Reader
from dgg_ray.strategies.a_gem import AGEM
from dgg_ray.strategies.branch_lora import BranchLoRA
from dgg_ray.strategies.disco import DISCO
from dgg_ray.strategies.ema import EMA
from dgg_ray.strategies.ewc import EWC
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.gem import GEM
from dgg_ray.strategies.lwf import LwF
from dgg_ray.strategies.modal_prompt import ModalPrompt
from dgg_ray.strategies.moe_lora import MoELoRA
from dgg_ray.strategies.o_lora import OLoRA
from dgg_ray.strategies.octopus import Octopus
from dgg_ray.strategies.reg_lora import RegLoRA
from dgg_ray.training.learner import PeftLearner
from dgg_ray.training.process_group import on_rank0

EXAMPLES, BATCH = 13, 8
ADAPTER = Adapter(rank=4)
# Clipping makes each gradient small beside AdamW's ε, 1e-8, so that a step is proportional to it. Otherwise
# AdamW would turn the rounding of a gradient that is nearly 0, as a router's is at first, into a whole step.
TRAINING = Training(batch_size=BATCH, learning_rate=0.05, schedule="constant", warmup=0.0, clip_norm=1e-7)
FIRST = Evaluation(ORDER[0], "test", "first task")
METHODS = {
    "finetune": Finetune(),
    "a_gem": AGEM(buffer=7, reference_examples=7),
    "branch_lora": BranchLoRA(branches=4, top_branches=2, watched_examples=7),
    "disco": DISCO(),
    "ema": EMA(decay=0.5),
    "ewc": EWC(strength=1e4, fisher_samples=7),
    "gem": GEM(buffer=7, reference_examples=7, margin=0.5),
    "lwf": LwF(strength=2.0),
    "modal_prompt": ModalPrompt(prompt_tokens=3),
    "moe_lora": MoELoRA(experts=2),
    "o_lora": OLoRA(norm=0.1),
    "octopus": Octopus(gradient_examples=3, orthogonality=1.0, start="previous"),
    "reg_lora": RegLoRA(),
}


def world_of(folder: Path, learner: PeftLearner | None = None) -> MethodWorld:
    """The store in a folder and, to train, a learner, with two micro-batches of each full batch."""
    tasks = {name: Reader(train=EXAMPLES, validation=4, test=5).read(name) for name in ORDER[:2]}
    size = BATCH // 2 // (learner.world_size if learner else 1)
    return MethodWorld(learner, tasks, folder, ADAPTER, replace(TRAINING, micro_batch_size=size))


def run(learner: PeftLearner, folder: Path) -> None:
    """Train both tasks with every method, and answer questions of the first one."""
    world = world_of(folder, learner)
    for strategy in METHODS.values():
        stage = world.train(strategy, on_rank0=on_rank0)[-1]
        world.runner(on_rank0=on_rank0).run(WorkItem(stage, (FIRST,)))


def main(folder: Path, engines: list[str]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo")
    for name in engines:
        learner = PeftLearner(Model(), zero=int(name[4]) if name.startswith("zero") else 0)
        run(learner, folder / name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
