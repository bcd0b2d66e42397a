"""A tiny CLIP model; by itself, because importing the architectures of `tiny_models` takes a second."""

from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dgg_ray.models import embedded


def clip(folder: Path) -> Path:
    """A CLIP model of two layers with random weights; its embeddings have 8 numbers."""
    torch.manual_seed(0)
    words = PreTrainedTokenizerFast.from_pretrained(embedded.FOLDER, model_max_length=32)
    end = words.eos_token, words.eos_token_id  # CLIP's embedding of a text is that of its end
    words.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {f"{kind}_token_id": words.eos_token_id for kind in ("bos", "eos", "pad")}
    config = CLIPConfig(
        text_config={**shape, **ids, "vocab_size": len(words), "max_position_embeddings": 32},
        vision_config={**shape, "image_size": 28, "patch_size": 14},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPProcessor(CLIPImageProcessorPil(**sizes), words).save_pretrained(folder)
    return folder
