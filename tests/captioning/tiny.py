"""A random BLIP of the smallest sizes, as transformers writes it, and pictures for it."""

import numpy as np
from PIL import Image

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
WORDS = [
    *SPECIAL,
    "a",
    "photo",
    "of",
    "red",
    "blue",
    "green",
    "bag",
    "dress",
    "cat",
    "on",
    "in",
    "the",
    "and",
]


def write_blip(folder):
    """A whole folder, tokenizer and image processor included."""
    import torch
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **sizes,
        "vocab_size": len(WORDS),
        "encoder_hidden_size": 32,
        "max_position_embeddings": 64,
        "bos_token_id": WORDS.index("[DEC]"),
        "eos_token_id": WORDS.index("[SEP]"),
        "sep_token_id": WORDS.index("[SEP]"),
        "pad_token_id": WORDS.index("[PAD]"),
        "initializer_range": 1.0,  # so that pictures get different captions
    }
    vision = {**sizes, "image_size": 16, "patch_size": 8, "initializer_range": 1.0}
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=32, projection_dim=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    vocab = {word: number for number, word in enumerate(WORDS)}
    tokenizer = BertTokenizer(vocab=vocab, bos_token="[DEC]", additional_special_tokens=["[ENC]"])
    size = {"height": 16, "width": 16}
    BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return folder


def write_pictures(folder, number, seed=0):
    """Pictures of random pixels, of different sizes: "0.png", "1.png" …"""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(number):
        pixels = rng.integers(0, 256, (20 + index, 30, 3), "uint8")
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder
