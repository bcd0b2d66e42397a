"""Examples as model inputs: token ids, pixels, padded batches.

One way for every architecture. The processor makes an example's inputs. Inputs with one value per token are
padded together with the tokens; all others (pixels, patch grids) are concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dgg_ray.core import image_conversion
from dgg_ray.core.interfaces import Example

IGNORE = -100
CACHE_BYTES = 2 << 30  # of prepared images, kept by a worker between stages


@dataclass(frozen=True, eq=False)
class Encoded:
    """An example as the model takes it.

    example: the one that was encoded.
    prompt, answer: token ids; the answer ends with the end-of-sequence token.
    per_token: by name, further inputs with one number per prompt token, such as token types.
    image_inputs: by name, the image's tensors, (images or patches, …).
    """

    example: Example
    prompt: list[int]
    answer: list[int]
    per_token: dict[str, list[int]]
    image_inputs: dict[str, Tensor]


class Encoder:
    """A processor with a cache: each image is decoded and prepared once in a worker's life."""

    def __init__(self, processor: Any, device: torch.device) -> None:
        self.processor, self.tokenizer, self.device = processor, processor.tokenizer, device
        self.answer_prefix = self._find_answer_prefix()
        self.cache: dict[int, Encoded] = {}  # an entry holds its example, so that the example's id is unique
        self.cached_bytes = 0
        self.questions: dict[int, tuple[Example, Encoded]] = {}

    def __call__(self, example: Example) -> Encoded:
        if cached := self.cache.get(id(example)):
            return cached
        text = self._prompt(example.question, example.image is not None)
        image = None if example.image is None else load_image(example)
        # Some templates write the first special token themselves.
        has_start = self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
        options = {"add_special_tokens": False} if has_start else {}
        inputs = dict(self.processor(text=text, images=image, return_tensors="pt", **options))
        ids = inputs.pop("input_ids")
        inputs.pop("attention_mask", None)
        per_token = {n: inputs.pop(n)[0].tolist() for n in list(inputs) if inputs[n].shape == ids.shape}
        answer_text = self.answer_prefix + example.answer
        answer = self.tokenizer(answer_text, add_special_tokens=False)["input_ids"]
        encoded = Encoded(example, ids[0].tolist(), [*answer, self.tokenizer.eos_token_id], per_token, inputs)
        size = sum(t.numel() * t.element_size() for t in inputs.values())
        if self.cached_bytes + size <= CACHE_BYTES:
            self.cached_bytes += size
            self.cache[id(example)] = encoded
        return encoded

    def question(self, example: Example) -> Encoded:
        """The example without its image, encoded once in a worker's life."""
        if id(example) not in self.questions:
            self.questions[id(example)] = (example, self(replace(example, image=None)))
        return self.questions[id(example)][1]

    def _prompt(self, question: str, image: bool, answer: str = "") -> str:
        """The turns in the model's template: up to where the answer begins, or with an answer."""
        content: list[dict[str, str]] = [{"type": "image"}] if image else []
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        ]
        if answer:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.processor.apply_chat_template(turns, add_generation_prompt=not answer)

    def _find_answer_prefix(self) -> str:
        """The text between the prompt and an answer: a space in LLaVA, nothing in Qwen."""
        prompt, with_answer = self._prompt("?", True), self._prompt("?", True, "ANSWER")
        prefix, answer, _ = with_answer.removeprefix(prompt).partition("ANSWER")
        return prefix if answer and with_answer.startswith(prompt) and not prefix.strip() else " "

    def with_placeholders(self, encoded: Encoded, count: int) -> Encoded:
        """The example with this many padding tokens in its prompt, for vectors that a layout puts there.

        They stand after the token that begins a text, if the prompt has one.
        """
        first = self.placeholders_start(encoded)
        per_token = {n: [*v[:first], *[0] * count, *v[first:]] for n, v in encoded.per_token.items()}
        filler = [self.tokenizer.pad_token_id] * count
        prompt = [*encoded.prompt[:first], *filler, *encoded.prompt[first:]]
        return replace(encoded, prompt=prompt, per_token=per_token)

    def placeholders_start(self, encoded: Encoded) -> int:
        """Number of tokens before the placeholders."""
        return int(encoded.prompt[:1] == [self.tokenizer.bos_token_id])

    def collate(self, batch: Sequence[Encoded], prompts_only: bool = False) -> dict[str, Tensor]:
        """A batch padded to its longest row.

        Rows hold prompt, answer and labels and are padded on the right. With `prompts_only`, for
        generation, they hold the prompts and are padded on the left.
        """
        rows = [e.prompt if prompts_only else e.prompt + e.answer for e in batch]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)  # (B, S)
        tensors = {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}
        if not prompts_only:
            tensors["labels"] = torch.full_like(ids, IGNORE)
        tensors |= {name: torch.zeros_like(ids) for e in batch for name in e.per_token}
        for i, (row, e) in enumerate(zip(rows, batch, strict=True)):
            first = width - len(row) if prompts_only else 0
            ids[i, first : first + len(row)] = torch.tensor(row)
            tensors["attention_mask"][i, first : first + len(row)] = 1
            for name, values in e.per_token.items():
                tensors[name][i, first : first + len(values)] = torch.tensor(values)
            if not prompts_only:
                tensors["labels"][i, len(e.prompt) : len(row)] = torch.tensor(e.answer)
        for name in {name for e in batch for name in e.image_inputs}:
            tensors[name] = concatenated([e.image_inputs[name] for e in batch if name in e.image_inputs])
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}


def concatenated(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors along their first dimension; smaller ones are padded with zeros in the others."""
    largest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    if all(list(t.shape[1:]) == largest for t in tensors):
        return torch.cat(list(tensors))
    padded = []
    for t in tensors:
        padding = [(0, wanted - size) for wanted, size in zip(largest, t.shape[1:], strict=True)]
        padded.append(nn.functional.pad(t, [n for pair in reversed(padding) for n in pair]))
    return torch.cat(padded)


def load_image(example: Example) -> Image.Image:
    """The example's image, in RGB and upright."""
    if isinstance(example.image, np.ndarray):
        return Image.fromarray(example.image)
    with Image.open(example.image) as image:  # type: ignore[arg-type]
        return image_conversion.to_rgb(image)
