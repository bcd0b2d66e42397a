"""LLaVA 1.5 (Liu et al., CVPR 2024, arXiv:2310.03744) in the Hugging Face layout.

A folder, or a hub name such as `llava-hf/llava-1.5-7b-hf` with its revision.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgg_ray.models._pretrained import Pretrained


@dataclass(frozen=True)
class Llava15(Pretrained):
    """A LLaVA 1.5, with pictures prepared by CLIP's processor: resized and cropped in the middle."""

    architectures = ("LlavaForConditionalGeneration",)
    plain_head = True

    def load(self):
        from transformers import LlavaForConditionalGeneration

        return self.weights(LlavaForConditionalGeneration), self.processor()

    def processor(self):
        from transformers import CLIPImageProcessorPil, LlavaProcessor

        # Pictures through Pillow, not torchvision: one preprocessing wherever a study runs.
        images = CLIPImageProcessorPil.from_pretrained(self.source, **self.place)
        return LlavaProcessor.from_pretrained(self.source, image_processor=images, **self.place)
