"""Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923) in the Hugging Face layout.

A folder, or a hub name such as `Qwen/Qwen2.5-VL-7B-Instruct` with its revision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from dgg_ray.models._pretrained import Pretrained


@dataclass(frozen=True)
class Qwen25VL(Pretrained):
    """A Qwen2.5-VL. It sees images in their own size; each 28 × 28 pixels cost a token.

    max_pixels: number of pixels to which larger images are shrunk; 0 leaves the model's own bound, which is
        millions of pixels, thousands of tokens an image.
    """

    architectures = ("Qwen2_5_VLForConditionalGeneration",)
    plain_head = True

    max_pixels: Annotated[int, Ge(0)] = 512 * 28 * 28

    def load(self):
        from transformers import Qwen2_5_VLForConditionalGeneration

        return self.load_weights(Qwen2_5_VLForConditionalGeneration), self.processor()

    def processor(self):
        from transformers import AutoTokenizer, Qwen2_5_VLProcessor
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
        from transformers.processing_utils import ProcessorMixin

        class ImagesOnly(Qwen2_5_VLProcessor):
            """The processor without its part for videos, which needs torchvision."""

            @classmethod
            def get_attributes(cls):
                return ["image_processor", "tokenizer"]

            def __init__(self, image_processor=None, tokenizer: Any = None, chat_template=None, **_):
                self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
                self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
                self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
                ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

        bound = {"max_pixels": self.max_pixels} if self.max_pixels else {}
        return ImagesOnly.from_pretrained(
            self.source,
            image_processor=Qwen2VLImageProcessorPil.from_pretrained(
                self.source, **bound, **self.source_options
            ),
            tokenizer=AutoTokenizer.from_pretrained(self.source, **self.source_options),
            **self.source_options,
        )
