"""Any image-text-to-text model of transformers that has a chat template.

The base model, its processor and its layers' names are found by transformers' auto classes. A file
of its own (llava_1_5, qwen2_5_vl, smolvlm) is for models whose processor needs care.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from dgg_ray.core.interfaces import digest
from dgg_ray.models._pretrained import Pretrained


@dataclass(frozen=True)
class Auto(Pretrained):
    """Whatever `AutoModelForImageTextToText` and `AutoProcessor` make of the path."""

    def load(self):
        from transformers import AutoModelForImageTextToText

        return self.weights(AutoModelForImageTextToText), self.processor()

    def processor(self):
        from transformers import AutoProcessor

        from dgg_ray.core.errors import StageError

        processor = AutoProcessor.from_pretrained(self.source, **self.place)
        # Where a part cannot be built, transformers gives the tokenizer alone, without a word.
        if not hasattr(processor, "image_processor"):
            raise StageError(
                f"model.path: {self.path} gives no processor for images, only {type(processor).__name__}; "
                "the parts that it is made of may need another package, such as torchvision"
            )
        if not getattr(processor, "chat_template", None):
            raise StageError(f"model.path: the processor of {self.path} must have a chat template, has none")
        return processor

    def fingerprint(self) -> str:
        # transformers prepares pictures with torchvision where it is there, and with Pillow where not.
        return digest([super().fingerprint(), find_spec("torchvision") is not None])

    def unfit(self, folder):
        templates = [*folder.glob("chat_template*"), folder / "tokenizer_config.json"]
        texts = [file.read_text(encoding="utf-8") for file in templates if file.is_file()]
        found = super().unfit(folder)
        if not any("chat_template" in file.name for file in templates[:-1]) and not any(
            "chat_template" in text for text in texts
        ):
            found.append(("path", "must hold a chat template (chat_template.jinja)", repr(self.path)))
        return found
