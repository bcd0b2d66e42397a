"""One of several processes that train together: every engine in turn, its results in a folder.

    RANK=0 WORLD_SIZE=2 … python tests/two_processes.py FOLDER ENGINE [ENGINE …]

An engine is ddp, zero1, zero2 or zero3, with -offload or -bf16 appended. Each trains `STEPS` steps with
guidance: once without a break, once with a checkpoint and a resume in the middle, and once from the
checkpoint of a single process, if the folder holds one.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from dgg_ray.core.interfaces import Adapter, StageSetup, Training
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.readers.embedded import Embedded as Reader
from dgg_ray.strategies.dgg import DGG
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.training import engines
from dgg_ray.training.learner import PeftLearner

STEPS, BREAK, BATCH = 12, 5, 8
CHECKPOINT_OF_ONE = "plain-checkpoint.safetensors"
ADAPTER = Adapter(rank=4)
TRAINING = Training(batch_size=BATCH, learning_rate=2e-3, schedule="cosine", warmup=0.1, clip_norm=5.0)
STRATEGY = DGG(alpha=0.5)


def batches():
    """One batch per step; the last two are too small for equal shares."""
    examples = Reader(train=BATCH * STEPS, validation=10, test=12).read("words").examples["train"]
    full = [examples[BATCH * i : BATCH * (i + 1)] for i in range(STEPS)]
    return [*full[:-2], full[-2][:5], full[-1][:1]]


def training_of(learner: PeftLearner, name: str = "") -> Training:
    """Two micro-batches per step for any number of processes."""
    precision = "bf16" if name.endswith("-bf16") else "fp32"
    return replace(TRAINING, micro_batch_size=BATCH // 2 // learner.world_size, precision=precision)


def train(
    learner: PeftLearner,
    training: Training,
    strategy: DGG,
    steps: range,
    checkpoint: dict[str, torch.Tensor] | None = None,
) -> list[float]:
    """Losses of the steps, from the stage's start or from a checkpoint after `steps.start` steps."""
    setup = StageSetup(ADAPTER, training, STEPS, 0, "words")
    if checkpoint is None:
        learner.start(setup)
        strategy.begin_task(learner.weights(), "words", ("digits",), 0)
    else:
        tensors = learner.resume(setup, steps.start, checkpoint)
        strategy.memory.update({"task": "words", "seed": 0} | tensors)
    return [learner.step(batches()[i], i, strategy.edit_gradient) for i in steps]


def gathered(learner: PeftLearner) -> dict[str, torch.Tensor]:
    learner.gather()
    return dict(learner.gathered)


def run(learner: PeftLearner, folder: Path, name: str) -> None:
    """Train with and without a break, and answer; rank 0 writes the results."""
    strategy, training = replace(STRATEGY), training_of(learner, name)
    losses = train(learner, training, strategy, range(STEPS))
    anchor = strategy.memory["anchor"]
    elements = [sum(t.numel() for t in tensors) for tensors in (anchor, learner.weights())]
    start = learner.engine.gather(anchor)
    gates = [strategy.is_open(i) for i in range(STEPS)]
    weights = gathered(learner)
    if training.precision == "bf16":  # only whether it is on is tested
        if learner.rank == 0:
            save_file(weights, folder / f"{name}.safetensors")
        return
    test = Reader(train=24, validation=10, test=12).read("words").examples["test"]
    answers = learner.answer(test[:11], 4)

    first, rest = replace(STRATEGY), range(BREAK, STEPS)
    train(learner, training, first, range(BREAK))
    checkpoint = learner.checkpoint_tensors(first.memory)
    losses_after_break = train(learner, training, replace(STRATEGY), rest, checkpoint)
    weights_after_break, weights_of_two = gathered(learner), {}
    if (folder / CHECKPOINT_OF_ONE).exists():
        checkpoint_of_one = load_file(folder / CHECKPOINT_OF_ONE)
        train(learner, training, replace(STRATEGY), rest, checkpoint_of_one)
        weights_of_two = gathered(learner)

    without_guidance = []
    for edit in (DGG(alpha=0.0).edit_gradient, Finetune().edit_gradient):
        learner.start(StageSetup(ADAPTER, training, STEPS, 0, "words"))
        for i in range(4):
            learner.step(batches()[i], i, edit)
        without_guidance.append(gathered(learner))
    dgg, finetune = without_guidance

    ranks: list = [None] * learner.world_size
    facts = {"elements": elements, "gates": gates}
    if learner.world_size > 1:
        dist.all_gather_object(ranks, facts)
    if learner.rank == 0:
        save_file(weights, folder / f"{name}.safetensors")
        save_file(weights_after_break, folder / f"{name}-after-break.safetensors")
        save_file(weights_of_two, folder / f"{name}-resumed-from-one.safetensors")
        save_file(checkpoint, folder / f"{name}-checkpoint.safetensors")
        save_file({str(i): t for i, t in enumerate(start)}, folder / f"{name}-anchor.safetensors")
        results = {
            "losses": losses,
            "losses_after_break": losses_after_break,
            "answers": answers,
            "ranks": ranks,
            "alpha_0_is_finetune": all(torch.equal(dgg[n], finetune[n]) for n in dgg),
        }
        (folder / f"{name}.json").write_text(json.dumps(results))


def init_and_collect(*arguments):
    """Make a DeepSpeed engine, then collect earlier engines: the worst moment for them to be destroyed."""
    engine = init_deepspeed(*arguments)
    gc.collect()
    return engine


init_deepspeed, engines.init_deepspeed = engines.init_deepspeed, init_and_collect


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo")
    for name in names:
        zero = int(name[4]) if name.startswith("zero") else 0
        run(PeftLearner(Model(), zero=zero, offload=name.endswith("-offload")), folder, name)
    dist.destroy_process_group()


def start_two(program: str, folder: Path, arguments: Sequence[str]) -> None:
    """Run a program of two processes, `program FOLDER ARGUMENTS…`, to its end; logs are in the folder."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    quiet = {"PYTHONWARNINGS": "ignore", "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(folder)}
    processes = []
    for rank in range(2):
        environment = os.environ | rendezvous | quiet | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"{rank}.log").open("w") as log:
            command = [sys.executable, program, str(folder), *arguments]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (folder / "0.log").read_text()[-3000:]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def load(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """(final weights, results) of an engine."""
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
