"""SmolVLM (Marafioti et al. 2025, arXiv:2504.05299), which is an Idefics3 (Laurençon et al. 2024,
arXiv:2408.12637), in the Hugging Face layout.

A folder, or a hub name such as `HuggingFaceTB/SmolVLM-256M-Instruct` with its revision.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgg_ray.models._pretrained import Pretrained


@dataclass(frozen=True)
class SmolVLM(Pretrained):
    """A SmolVLM or another Idefics3.

    image_splitting: whether to show a large image in parts and as a whole, as published; each part costs
        as many tokens as the whole.
    """

    architectures = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")
    plain_head = True

    image_splitting: bool = False

    def load(self):
        from transformers import AutoModelForImageTextToText

        return self.load_weights(AutoModelForImageTextToText), self.processor()

    def processor(self):
        from transformers import AutoConfig, Idefics3Processor
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

        # Pillow, not torchvision. Both models use the processor of Idefics3: SmolVLM's own only adds videos.
        settings = {"do_image_splitting": self.image_splitting, **self.source_options}
        images = Idefics3ImageProcessorPil.from_pretrained(self.source, **settings)
        config = AutoConfig.from_pretrained(self.source, **self.source_options)
        side = config.vision_config.image_size // config.vision_config.patch_size
        return Idefics3Processor.from_pretrained(
            self.source,
            image_processor=images,
            image_seq_len=side**2 // config.scale_factor**2,
            **self.source_options,
        )
