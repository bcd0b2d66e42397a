"""Tiny models of every architecture: built from their configuration, saved as users have them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dgg_ray.models import embedded

TURNS = (  # with the start of a turn, its end, an image
    "{{% for message in messages %}}{start}{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}{{{{ '{image}' }}}}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{{% endfor %}}{{{{ '{end}\n' }}}}{{% endfor %}}{{% if add_generation_prompt %}}{open}{{% endif %}}"
)
QWEN = TURNS.format(
    start="{{ '<|im_start|>' + message['role'] + '\n' }}",
    image="<|vision_start|><|image_pad|><|vision_end|>",
    end="<|im_end|>",
    open="{{ '<|im_start|>assistant\n' }}",
)
IDEFICS = TURNS.format(
    start="{{ message['role'] | capitalize + (':' if message['content'][0]['type'] == 'image' else ': ') }}",
    image="<image>",
    end="<end_of_utterance>",
    open="{{ 'Assistant:' }}",
)


def tokenizer(end: str, *marks: str) -> PreTrainedTokenizerFast:
    """The embedded model's tokenizer with another end mark and further special tokens."""
    fast = PreTrainedTokenizerFast.from_pretrained(embedded.FOLDER)
    fast.add_special_tokens({"eos_token": end, "additional_special_tokens": list(marks)})
    fast.chat_template = None
    return fast


def llava(folder: Path) -> Path:
    shutil.copytree(embedded.FOLDER, folder)
    return folder


def qwen2_5_vl(folder: Path) -> Path:
    torch.manual_seed(0)
    words = tokenizer(
        "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
    )
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    starts = {n: words.convert_tokens_to_ids(f"<|vision_{n}|>") for n in ("start", "end")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64,
            "patch_size": 14, "spatial_merge_size": 2, "fullatt_block_indexes": [1], "window_size": 56,
        },
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=starts["start"], vision_end_token_id=starts["end"],
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    words.chat_template = QWEN
    words.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processor_class": "Qwen2_5_VLProcessor"}))
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56).save_pretrained(folder)
    return folder


def smolvlm(folder: Path) -> Path:
    torch.manual_seed(0)
    words = tokenizer(
        "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>", "<row_1_col_1>"
    )
    config = Idefics3Config(
        text_config={
            "model_type": "llama", "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 512, "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        },
        vision_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 32, "patch_size": 8,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"), scale_factor=2,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    Idefics3Processor(images, words, image_seq_len=4, chat_template=IDEFICS).save_pretrained(folder)
    return folder
