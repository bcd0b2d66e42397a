"""Any image-text-to-text model of transformers that has a chat template.

transformers' auto classes find the base model, its processor and the names of its layers. Models whose
processor needs care have a file of their own (llava_1_5, qwen2_5_vl, smolvlm).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from dgg_ray.core.hashing import digest
from dgg_ray.models._pretrained import Pretrained


@dataclass(frozen=True)
class Auto(Pretrained):
    """The model that `AutoModelForImageTextToText` and `AutoProcessor` load from the path."""

    def load(self):
        from transformers import AutoModelForImageTextToText

        return self.load_weights(AutoModelForImageTextToText), self.processor()

    def processor(self):
        from transformers import AutoProcessor

        from dgg_ray.core.errors import StageError

        processor = AutoProcessor.from_pretrained(self.source, **self.source_options)
        # Where a part cannot be built, transformers silently returns the tokenizer alone.
        if not hasattr(processor, "image_processor"):
            raise StageError(
                f"model.path: {self.path} gives no processor for images, only {type(processor).__name__}; "
                "its parts may need another package, such as torchvision"
            )
        if not getattr(processor, "chat_template", None):
            raise StageError(f"model.path: the processor of {self.path} must have a chat template, has none")
        return processor

    def fingerprint(self) -> str:
        # transformers prepares images with torchvision where it is installed, and with Pillow elsewhere.
        return digest([super().fingerprint(), find_spec("torchvision") is not None])

    def config_faults(self, folder):
        templates = list(folder.glob("chat_template*"))
        config = folder / "tokenizer_config.json"
        texts = [file.read_text(encoding="utf-8") for file in (*templates, config) if file.is_file()]
        faults = super().config_faults(folder)
        if not templates and not any("chat_template" in text for text in texts):
            faults.append(("path", "must hold a chat template (chat_template.jinja)", repr(self.path)))
        return faults
