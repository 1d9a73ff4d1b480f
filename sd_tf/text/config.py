"""The configurations of text encoders and of CLIP's image tower: each is its `config.json`."""

from dataclasses import dataclass

from sd_tf.config import kept
from sd_tf.errors import InputError


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

    @property
    def width(self) -> int:
        """Of the states."""
        return self.hidden_size


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


@dataclass(frozen=True)
class T5Config:
    """`transformers.T5Config`, as far as the encoder needs it; the defaults are T5-small's."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64  # of one head; `num_heads` times it need not be `d_model`
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    pad_token_id: int = 0
    eos_token_id: int = 1
    use_attention_mask: bool = False  # of diffusers, see `sd_tf.text.encoder`
    kept: dict = kept()

    @property
    def width(self) -> int:
        """Of the states."""
        return self.d_model


def check_buckets(config: T5Config):
    """Raises `InputError` where positions have too few buckets, or the far ones have no distances."""
    buckets, farthest = config.relative_attention_num_buckets, config.relative_attention_max_distance
    if buckets < 4 or farthest <= buckets // 4:
        raise InputError(
            f"relative_attention_num_buckets is {buckets}, relative_attention_max_distance {farthest}: give "
            "4 buckets or more, and a distance greater than a quarter of them."
        )


@dataclass(frozen=True)
class BertConfig:
    """`transformers.BertConfig`; the defaults are BERT-base's."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    use_attention_mask: bool = False  # of diffusers, see `sd_tf.text.encoder`
    kept: dict = kept()

    @property
    def width(self) -> int:
        """Of the states."""
        return self.hidden_size
