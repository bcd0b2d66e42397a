"""Examples → what a model takes: token ids, pixels, padded batches.

One way for every architecture: the processor makes an example's inputs, those that run along the
tokens are padded with them, all others (pixels, patch grids) are laid one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dgg_ray.core import pixels
from dgg_ray.core.interfaces import Example

IGNORE = -100
KEPT_BYTES = 2 << 30  # prepared pictures kept by a worker between stages


@dataclass(frozen=True, eq=False)
class Encoded:
    """An example as the model takes it.

    prompt, answer: token ids; the answer ends with the end mark.
    along: by name, numbers beside the prompt's ids, such as the kind of each token.
    inputs: by name, tensors of the picture, (pictures or patches, …).
    """

    prompt: list[int]
    answer: list[int]
    along: dict[str, list[int]]
    inputs: dict[str, Tensor]


class Encoder:
    """A processor that remembers; each picture is decoded and prepared once while the worker lives."""

    def __init__(self, processor: Any, device: torch.device) -> None:
        self.processor, self.tokenizer, self.device = processor, processor.tokenizer, device
        self.lead = self._lead()
        self.kept: dict[int, tuple[Example, Encoded]] = {}
        self.kept_bytes = 0

    def __call__(self, example: Example) -> Encoded:
        if kept := self.kept.get(id(example)):
            return kept[1]
        text = self._prompt(example.question, example.image is not None)
        images = None if example.image is None else picture(example)
        begun = self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
        marks = {"add_special_tokens": False} if begun else {}  # the template wrote the first one already
        inputs = dict(self.processor(text=text, images=images, return_tensors="pt", **marks))
        ids = inputs.pop("input_ids")
        inputs.pop("attention_mask", None)
        along = {n: inputs.pop(n)[0].tolist() for n in list(inputs) if inputs[n].shape == ids.shape}
        answer = self.tokenizer(self.lead + example.answer, add_special_tokens=False)["input_ids"]
        encoded = Encoded(ids[0].tolist(), [*answer, self.tokenizer.eos_token_id], along, inputs)
        size = sum(t.numel() * t.element_size() for t in inputs.values())
        if self.kept_bytes + size <= KEPT_BYTES:
            self.kept_bytes += size
            self.kept[id(example)] = (example, encoded)  # holding the example keeps its id unique
        return encoded

    def _prompt(self, question: str, image: bool, answer: str = "") -> str:
        """The turns as the model's template writes them, up to where the answer begins, or with one."""
        content: list[dict[str, str]] = [{"type": "image"}] if image else []
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        ]
        if answer:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.processor.apply_chat_template(turns, add_generation_prompt=not answer)

    def _lead(self) -> str:
        """What stands between the prompt and an answer: a space in LLaVA, nothing in Qwen."""
        prompt, whole = self._prompt("?", True), self._prompt("?", True, "ANSWER")
        between, found, _ = whole.removeprefix(prompt).partition("ANSWER")
        return between if found and whole.startswith(prompt) and not between.strip() else " "

    def collate(self, batch: Sequence[Encoded], ask: bool = False) -> dict[str, Tensor]:
        """Padded to the longest: on the right with answers and labels, on the left to `ask`."""
        rows = [e.prompt if ask else e.prompt + e.answer for e in batch]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)  # (B, S)
        tensors = {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}
        tensors |= {} if ask else {"labels": torch.full_like(ids, IGNORE)}
        tensors |= {name: torch.zeros_like(ids) for e in batch for name in e.along}
        for i, (row, e) in enumerate(zip(rows, batch, strict=True)):
            first = width - len(row) if ask else 0
            ids[i, first : first + len(row)] = torch.tensor(row)
            tensors["attention_mask"][i, first : first + len(row)] = 1
            for name, values in e.along.items():
                tensors[name][i, first : first + len(values)] = torch.tensor(values)
            if not ask:
                tensors["labels"][i, len(e.prompt) : len(row)] = torch.tensor(e.answer)
        for name in {name for e in batch for name in e.inputs}:
            tensors[name] = stacked([e.inputs[name] for e in batch if name in e.inputs])
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """One after another along the first dimension; zeros where the others differ in size."""
    most = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    if all(list(t.shape[1:]) == most for t in tensors):
        return torch.cat(list(tensors))
    wide = []
    for t in tensors:
        room = [(0, wanted - size) for wanted, size in zip(most, t.shape[1:], strict=True)]
        wide.append(nn.functional.pad(t, [n for pair in reversed(room) for n in pair]))
    return torch.cat(wide)


def picture(example: Example) -> Image.Image:
    """The example's image, RGB, as a person sees it."""
    if isinstance(example.image, np.ndarray):
        return Image.fromarray(example.image)
    with Image.open(example.image) as image:  # type: ignore[arg-type]
        return pixels.shown(image)
