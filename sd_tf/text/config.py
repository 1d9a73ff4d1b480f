"""The configurations of CLIP's towers: each is its `config.json`."""

from dataclasses import dataclass

from sd_tf.config import kept


@dataclass(frozen=True)
class CLIPTextConfig:
    """`transformers.CLIPTextConfig`; the defaults are OpenAI's ViT-L/14."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 49407
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    kept: dict = kept()


@dataclass(frozen=True)
class CLIPVisionConfig:
    """`transformers.CLIPVisionConfig`; the defaults are OpenAI's ViT-L/14."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    projection_dim: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    kept: dict = kept()
