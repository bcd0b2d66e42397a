"""Exported adapters as a process sees them that knows nothing but their folders.

    python tests/exported_adapters.py FOLDER

Each folder FOLDER/exported/NAME is loaded as its card says: by PEFT, or by `dgg_ray.load_adapter`. Its logits
and answers to the same examples are written to FOLDER/NAME.safetensors and FOLDER/NAME.json; the latter has
the traceback where the folder cannot be loaded.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from method_samples import ORDER, make_tasks
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor

import dgg_ray
from dgg_ray.core.interfaces import Example, Training
from dgg_ray.models.embedded import Embedded
from dgg_ray.training.answer_loss import AnswerLoss
from dgg_ray.training.exported_adapter import DESCRIPTION
from dgg_ray.training.learner import PeftLearner, silence_libraries

LONGEST = 8  # tokens of an answer, as `MethodWorld` evaluates


def asked_examples(tasks) -> list[Example]:
    """The examples that every adapter answers: the test examples of all tasks, learned or not."""
    return [example for name in ORDER for example in tasks[name].examples["test"]]


def logits_of(learner: PeftLearner, examples: Sequence[Example], route: Tensor | None) -> Tensor:
    """Logits (n, V) of the examples' own answers, as the learner is now."""
    inputs = learner.inputs_of([learner.encode(example) for example in examples])
    learner.layout.set_route(route)
    learner.peft.eval()
    with torch.no_grad():
        logits = learner.loss.answer_logits(inputs.pop("labels"), inputs)[0]
    learner.layout.set_route(None)
    return logits


def load(folder: Path, examples: Sequence[Example]) -> tuple[PeftLearner, Tensor | None]:
    """A learner with the exported adapter, and the route of each example."""
    if (folder / DESCRIPTION).exists():
        loaded = dgg_ray.load_adapter(folder)
        return loaded.learner, loaded.route(examples)
    learner = PeftLearner(Embedded())
    learner.peft, learner.training = PeftModel.from_pretrained(learner.base, folder), Training()
    learner.loss = AnswerLoss(learner.peft, learner.plain_head, learner.autocast, learner.layout, [])
    return learner, None


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    silence_libraries()
    examples = asked_examples(make_tasks())
    for exported in sorted((folder / "exported").iterdir()):
        try:
            learner, route = load(exported, examples)
            logits, answers = logits_of(learner, examples, route), learner.answer(examples, LONGEST, route)
        except Exception:
            (folder / f"{exported.name}.json").write_text(json.dumps(traceback.format_exc()))
            continue
        save_file({"logits": logits}, folder / f"{exported.name}.safetensors")
        (folder / f"{exported.name}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
