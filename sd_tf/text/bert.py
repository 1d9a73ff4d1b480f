"""BERT, a frozen text encoder, and so the sentence-transformers that are made of it.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding"; layer
for layer `transformers.BertModel`. Sublayers carry its module names, so that a variable's path is its key in
a checkpoint.
"""

import dataclasses
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from sd_tf.errors import InputError, unknown
from sd_tf.nn.attention import scaled_dot_product_attention
from sd_tf.text.config import BertConfig

MASKED = -1e9  # finite, so that a row without any token of a text is no NaN
ACTIVATIONS = {
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_new": lambda x: ops.gelu(x, approximate=True),
    "relu": ops.relu,
}


class BertOutput(NamedTuple):
    """What the network returns."""

    last_hidden_state: Any  # (batch, tokens, width)
    pooled: Any  # (batch, width): the pooler's, from the first token's state; None without a pooler


class _Configured:
    """A Keras layer or model built from a `BertConfig`."""

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config

    def get_config(self):
        return super().get_config() | {"config": dataclasses.asdict(self.config)}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        return cls(BertConfig(**config.pop("config")), **config)


def _normal():
    # One for each variable: a Keras initializer draws the same numbers whenever it is called.
    return keras.initializers.RandomNormal(stddev=0.02)


def _dense(owner, name, inputs, outputs):
    dense = keras.layers.Dense(outputs, kernel_initializer=_normal(), name=name, dtype=owner.dtype_policy)
    dense.build((None, None, inputs))
    return dense


def _layer_norm(owner, name="LayerNorm"):
    norm = keras.layers.LayerNormalization(
        epsilon=owner.config.layer_norm_eps, name=name, dtype=owner.dtype_policy
    )
    norm.build((None, None, owner.config.hidden_size))
    return norm


@keras.saving.register_keras_serializable("sd_tf")
class BertEmbeddings(_Configured, keras.layers.Layer):
    """Learned embeddings of tokens, positions and kinds of text, added and normalised.

    All tokens are of kind 0, as in any text that stands alone.
    """

    def build(self, shape):
        for name, rows in (
            ("word_embeddings", self.config.vocab_size),
            ("position_embeddings", self.config.max_position_embeddings),
            ("token_type_embeddings", self.config.type_vocab_size),
        ):
            embedding = keras.layers.Embedding(
                rows, self.config.hidden_size, _normal(), name=name, dtype=self.dtype_policy
            )
            embedding.build(shape)
            setattr(self, name, embedding)
        self.LayerNorm = _layer_norm(self)

    def call(self, token_ids):
        """int (batch, tokens) -> (batch, tokens, width)."""
        positions = np.arange(token_ids.shape[1])
        x = self.word_embeddings(token_ids) + self.token_type_embeddings(np.zeros_like(positions))
        return self.LayerNorm(x + self.position_embeddings(positions))


@keras.saving.register_keras_serializable("sd_tf")
class BertSelfAttention(_Configured, keras.layers.Layer):
    """Multi-head attention, without the projection behind it."""

    def build(self, shape):
        for name in ("query", "key", "value"):
            setattr(self, name, _dense(self, name, self.config.hidden_size, self.config.hidden_size))

    def call(self, x, bias):
        """(batch, tokens, width) -> the same; `bias` is added to the logits."""
        # Keras has cast the bias to the compute dtype, as it does all float arguments; logits are float32.
        bias = ops.maximum(ops.cast(bias, "float32"), MASKED)
        heads = self.config.num_attention_heads
        return scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), heads, bias)


@keras.saving.register_keras_serializable("sd_tf")
class BertSublayerOutput(_Configured, keras.layers.Layer):
    """What ends attention and the feed-forward layers: a projection, the residual, and a norm behind both."""

    def build(self, shape):
        self.dense = _dense(self, "dense", shape[-1], self.config.hidden_size)
        self.LayerNorm = _layer_norm(self)

    def call(self, x, residual):
        """(batch, tokens, inner width) and (batch, tokens, width) -> the latter."""
        return self.LayerNorm(self.dense(x) + residual)


@keras.saving.register_keras_serializable("sd_tf")
class BertLayer(_Configured, keras.layers.Layer):
    """Attention, then two dense layers, each with a residual and a norm behind it."""

    def build(self, shape):
        width, inner = self.config.hidden_size, self.config.intermediate_size
        policy = {"dtype": self.dtype_policy}
        self.attention = BertSelfAttention(self.config, name="attention.self", **policy)
        self.attention_output = BertSublayerOutput(self.config, name="attention.output", **policy)
        self.intermediate = _dense(self, "intermediate.dense", width, inner)
        self.feed_forward_output = BertSublayerOutput(self.config, name="output", **policy)
        self.attention.build(shape)
        self.attention_output.build(shape)
        self.feed_forward_output.build((None, None, inner))

    def call(self, x, bias):
        """(batch, tokens, width) -> the same; `bias` is added to the attention's logits."""
        x = self.attention_output(self.attention(x, bias), x)
        inner = ACTIVATIONS[self.config.hidden_act](self.intermediate(x))
        return self.feed_forward_output(inner, x)


@keras.saving.register_keras_serializable("sd_tf")
class BertEncoder(_Configured, keras.layers.Layer):
    """The stack of layers."""

    def build(self, shape):
        self.layers = [
            BertLayer(self.config, name=f"layer.{i}", dtype=self.dtype_policy)
            for i in range(self.config.num_hidden_layers)
        ]
        for layer in self.layers:
            layer.build(shape)

    def call(self, x, bias):
        """(batch, tokens, width) -> the same; `bias` is added to each attention's logits."""
        for layer in self.layers:
            x = layer(x, bias)
        return x


@keras.saving.register_keras_serializable("sd_tf")
class BertModel(_Configured, keras.Model):
    """BERT: token ids to one state for each token.

    Args:
        config: `BertConfig`; the default is BERT-base's.
        add_pooling_layer: whether there is a pooler, a dense layer with tanh on the first token's state.
        **kwargs: name and dtype of the Keras model.

    Raises:
        InputError: the activation is unknown or the heads do not divide the width.

    Example:
        >>> states, pooled = BertModel()(ids, mask)  # (batch, tokens, 768), (batch, 768)

    Reference: `transformers.BertModel`.
    """

    def __init__(self, config=None, add_pooling_layer=True, **kwargs):
        config = config or BertConfig()
        _check(config)
        super().__init__(config, **kwargs)
        self.add_pooling_layer = add_pooling_layer

    def get_config(self):
        return super().get_config() | {"add_pooling_layer": self.add_pooling_layer}

    def build(self, token_ids_shape=None, mask_shape=None):
        """Make the variables, whose shapes follow from the configuration alone."""
        width = self.config.hidden_size
        self.embeddings = BertEmbeddings(self.config, name="embeddings", dtype=self.dtype_policy)
        self.encoder = BertEncoder(self.config, name="encoder", dtype=self.dtype_policy)
        self.embeddings.build((None, None))
        self.encoder.build((None, None, width))
        self.pooler = _dense(self, "pooler.dense", width, width) if self.add_pooling_layer else None

    def call(self, token_ids, mask):
        """Encode token ids.

        Args:
            token_ids: int32 (batch, tokens), up to the configuration's `max_position_embeddings` tokens.
            mask: bool (batch, tokens), True at tokens of the text. No state attends to the others.

        Returns:
            `BertOutput` of the compute dtype.

        Raises:
            InputError: more tokens than there are positions.
        """
        tokens, most = token_ids.shape[1], self.config.max_position_embeddings
        if tokens is None or tokens > most:
            raise InputError(f"token_ids have {tokens} tokens, the network reads up to {most}: pass fewer.")
        bias = ops.where(ops.cast(mask, "bool"), 0.0, MASKED)[:, None, None, :]  # (batch, 1, 1, key)
        states = self.encoder(self.embeddings(token_ids), bias)
        pooled = None if self.pooler is None else ops.tanh(self.pooler(states[:, 0]))
        return BertOutput(states, pooled)


def _check(config):
    if config.hidden_act not in ACTIVATIONS:
        raise unknown("activation", config.hidden_act, ACTIVATIONS)
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"{config.num_attention_heads} heads do not divide the width {config.hidden_size}: "
            "change one of them."
        )
