"""LLaVA 1.5 (Liu et al., CVPR 2024, arXiv:2310.03744) in the Hugging Face layout.

A folder with config.json, a processor and safetensors, or a hub name such as
`llava-hf/llava-1.5-7b-hf` with its revision. Pickled weights and code from the hub are never run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from dgg_ray.contracts import Model, digest

NEEDED = ("config.json", "tokenizer_config.json", "*.safetensors", "*processor_config.json")


@dataclass(frozen=True)
class Llava15(Model):
    """A LLaVA 1.5 from a folder or a hub.

    path: a folder, or a hub name.
    revision: commit of a hub name, required there: it stands for the weights in every stage key.
    dtype: of the frozen base; the LoRA weights are fp32 whatever it is.
    """

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def load(self) -> tuple[Any, Any]:
        import torch
        from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor

        place: dict[str, Any] = {
            "revision": self.revision or "main",
            "local_files_only": self.folder is not None,
        }
        # Pictures through Pillow, not torchvision: one preprocessing wherever a study runs.
        images = CLIPImageProcessorPil.from_pretrained(self.path, **place)
        processor = LlavaProcessor.from_pretrained(self.path, image_processor=images, **place)
        model = LlavaForConditionalGeneration.from_pretrained(
            self.path, dtype=getattr(torch, self.dtype), use_safetensors=True, **place
        )
        return model.eval(), processor

    @property
    def folder(self) -> Path | None:
        """Where the files are; None for a hub name."""
        place = Path(self.path).expanduser()
        return place if place.is_dir() or place.is_absolute() else None

    def fingerprint(self) -> str:
        if self.folder is None:
            return digest([self.path, self.revision, self.dtype])
        return digest([content(self.folder), self.dtype])

    def faults(self) -> list[tuple[str, str, str]]:
        if self.folder is None:
            if self.revision:
                return []
            return [("revision", "is required for a hub name: the commit that stands for the weights", "")]
        if not self.folder.is_dir():
            return [("path", "no such folder", repr(self.path))]
        missing = [p for p in NEEDED if not any(self.folder.glob(p))]
        if "*.safetensors" in missing and any(self.folder.glob("*.bin")):
            missing.remove("*.safetensors")
            pickled = "must hold safetensors; its weights are pickles, which are never read"
            return [("path", pickled, repr(self.path)), *gaps(missing, self.path)]
        return gaps(missing, self.path)


def gaps(missing: list[str], path: str) -> list[tuple[str, str, str]]:
    return [("path", f"must hold {name}", repr(path)) for name in missing]


@cache
def content(folder: Path) -> str:
    """SHA-256 over names and contents of all that bears on an answer."""
    whole = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.safetensors")]):
        whole.update(file.name.encode())
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()
