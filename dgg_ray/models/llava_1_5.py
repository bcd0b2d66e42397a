"""LLaVA 1.5 (Liu et al., CVPR 2024, arXiv:2310.03744) in the Hugging Face layout.

A folder, or a hub name such as `llava-hf/llava-1.5-7b-hf` with its revision.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgg_ray.models._pretrained import Pretrained


@dataclass(frozen=True)
class Llava15(Pretrained):
    """A LLaVA 1.5, with images prepared by CLIP's processor: resized and cropped at the centre."""

    architectures = ("LlavaForConditionalGeneration",)
    plain_head = True

    def load(self):
        from transformers import LlavaForConditionalGeneration

        return self.load_weights(LlavaForConditionalGeneration), self.processor()

    def processor(self):
        from transformers import CLIPImageProcessorPil, LlavaProcessor

        # Images through Pillow, not torchvision: the same preprocessing on every machine.
        images = CLIPImageProcessorPil.from_pretrained(self.source, **self.source_options)
        return LlavaProcessor.from_pretrained(self.source, image_processor=images, **self.source_options)
