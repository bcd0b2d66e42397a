"""A LLaVA small enough for any laptop, with its weights in the package: studies run offline.

CLIP vision tower → projector → Llama, in the same transformers classes as LLaVA 1.5: the same code
trains this model and the real one. Images of 32 × 32 pixels become 16 tokens; a byte-level vocabulary
reads any text. The weights come from scripts/pretrain_embedded.py; embedded/PRETRAINING.md describes
their training data and abilities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dgg_ray.core.interfaces import Model
from dgg_ray.models._pretrained import context_length, skeleton

FOLDER = Path(__file__).with_suffix("")


@dataclass(frozen=True)
class Embedded(Model):
    """The model in the package; it has no settings."""

    plain_head = True

    def load(self) -> tuple[Any, Any]:
        import torch
        from transformers import LlavaForConditionalGeneration

        with no_progress_bar():
            model = LlavaForConditionalGeneration.from_pretrained(
                FOLDER, dtype=torch.float32, local_files_only=True
            )
        return model.eval(), self.processor()

    def processor(self) -> Any:
        from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

        # Part by part: AutoProcessor would look for torchvision first and log that it is missing.
        return LlavaProcessor.from_pretrained(
            FOLDER,
            image_processor=CLIPImageProcessorPil.from_pretrained(FOLDER, local_files_only=True),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(FOLDER, local_files_only=True),
            local_files_only=True,
        )

    def context_length(self) -> int:
        return context_length(FOLDER)

    def has_local_files(self) -> bool:
        return True

    def skeleton(self) -> Any:
        return skeleton(FOLDER)

    def fingerprint(self) -> str:
        return folder_hash()

    def faults(self) -> list[tuple[str, str, str]]:
        if (FOLDER / "model.safetensors").is_file():
            return []
        return [("name", "the embedded weights must be in the package: install it again", str(FOLDER))]


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hide transformers' progress bar: every process of a study loads these four megabytes."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


@cache
def folder_hash() -> str:
    """Return SHA-256 over names and contents of the files that bear on an answer, 64 hex digits."""
    content = hashlib.sha256()
    for file in sorted(FOLDER.iterdir()):
        if file.suffix != ".md":
            content.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return content.hexdigest()
