"""One of several processes that learn together: every engine in turn, its results in a folder.

    RANK=0 WORLD_SIZE=2 … python tests/two_processes.py FOLDER ENGINE [ENGINE …]

An engine is ddp, zero1, zero2, zero3, with -offload or -bf16 behind it. For each: `STEPS` steps
with guidance, once without a break, once with a snapshot and another beginning in the middle, and once
from the snapshot of one process, where the folder has it.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from dgg_ray.core.interfaces import Adapter, Training
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.readers.embedded import Embedded as Reader
from dgg_ray.strategies.dgg import DGG
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.training import engines
from dgg_ray.training.learner import PeftLearner

STEPS, BREAK, BATCH = 24, 10, 8
ALONE = "plain-snapshot.safetensors"
ADAPTER = Adapter(rank=4)
TRAINING = Training(batch_size=BATCH, learning_rate=2e-3, schedule="cosine", warmup=0.1, clip_norm=5.0)
STRATEGY = DGG(alpha=0.5)


def batches():
    """Longer and shorter ones, the last too small for an equal share each."""
    examples = Reader(train=BATCH * STEPS, validation=10, test=12).read("words").examples["train"]
    cut = [examples[BATCH * i : BATCH * (i + 1)] for i in range(STEPS)]
    return [*cut[:-2], cut[-2][:5], cut[-1][:1]]


def learned(
    learner: PeftLearner, training: Training, strategy: DGG, steps: range, begun: dict, after=None
) -> list[float]:
    """Losses of the steps; `begun` is what `begin` got beside the usual, `after` is called at the end."""
    memory = learner.begin(ADAPTER, training, STEPS, 0, "words", None, **begun)
    if begun:
        strategy.memory.update({"task": "words", "seed": 0} | memory)
    else:
        strategy.begin_task(learner.weights(), "words", ("digits",), 0)
    losses = [learner.step(batches()[i], i, strategy.edit_gradient) for i in steps]
    if after:
        after(strategy)
    return losses


def learning(learner: PeftLearner, name: str = "") -> Training:
    """Two micro-batches a step, whoever shares it."""
    precision = "bf16" if name.endswith("-bf16") else "fp32"
    return replace(TRAINING, micro_batch_size=BATCH // 2 // learner.world, precision=precision)


def results(learner: PeftLearner, folder: Path, name: str) -> None:
    """Learn with and without a break, and answer; rank 0 writes what came of it."""
    strategy, training = replace(STRATEGY), learning(learner, name)
    losses = learned(learner, training, strategy, range(STEPS), {})
    anchor = strategy.memory["anchor"]
    held = torch.tensor([sum(t.numel() for t in anchor), sum(t.numel() for t in learner.weights())])
    start = learner.engine.whole(anchor)
    gates = [strategy.opens(i) for i in range(STEPS)]
    learner.gather()
    whole = dict(learner.gathered)
    if training.precision == "bf16":  # of interest is only that it is on
        if learner.rank == 0:
            save_file(whole, folder / f"{name}.safetensors")
        return
    test = Reader(train=24, validation=10, test=12).read("words").examples["test"]
    answers = learner.answer(test[:11], 4)

    kept: dict = {}
    first = replace(STRATEGY)
    keep = lambda s: kept.update(learner.snapshot(s.memory))  # noqa: E731
    learned(learner, training, first, range(BREAK), {}, after=keep)
    rest = range(BREAK, STEPS)
    halves = learned(learner, training, replace(STRATEGY), rest, {"done": BREAK, "snapshot": kept})
    learner.gather()
    broken, taken_up = dict(learner.gathered), {}
    if (folder / ALONE).exists():
        begun = {"done": BREAK, "snapshot": load_file(folder / ALONE)}
        learned(learner, training, replace(STRATEGY), rest, begun)
        learner.gather()
        taken_up = dict(learner.gathered)

    ends = []
    for edit in (DGG(alpha=0.0).edit_gradient, Finetune().edit_gradient):
        learner.begin(ADAPTER, training, STEPS, 0, "words", None)
        for i in range(4):
            learner.step(batches()[i], i, edit)
        learner.gather()
        ends.append(dict(learner.gathered))
    same = all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])

    shares: list = [None] * learner.world
    facts = {"held": held.tolist(), "gates": gates}
    if learner.world > 1:
        dist.all_gather_object(shares, facts)
    if learner.rank == 0:
        save_file(whole, folder / f"{name}.safetensors")
        save_file(broken, folder / f"{name}-broken.safetensors")
        save_file(taken_up, folder / f"{name}-taken-up.safetensors")
        save_file(kept, folder / f"{name}-snapshot.safetensors")
        save_file({str(i): t for i, t in enumerate(start)}, folder / f"{name}-anchor.safetensors")
        said = {"losses": losses, "halves": halves, "answers": answers, "shares": shares, "same": same}
        (folder / f"{name}.json").write_text(json.dumps(said))


def collected(*arguments):
    """A DeepSpeed engine, made at the worst moment: what is left of those before is collected right after."""
    made = initialized(*arguments)
    gc.collect()
    return made


initialized, engines.initialized = engines.initialized, collected


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo")
    for name in names:
        zero = int(name[4]) if name.startswith("zero") else 0
        results(PeftLearner(Model(), zero=zero, offload=name.endswith("-offload")), folder, name)
    dist.destroy_process_group()


def load(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
