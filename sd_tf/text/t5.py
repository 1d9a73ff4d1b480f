"""T5's encoder, a frozen text encoder.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"; layer
for layer `transformers.T5EncoderModel`. Sublayers carry its module names, so that a variable's path is its
key in a checkpoint.

It differs from other transformers in four ways: attention knows positions by a bias of its logits alone,
one for each bucket of distances, which the first layer has and all use; logits are not scaled; norms divide
by the root mean square (Zhang & Sennrich 2019) and have no bias; and no dense layer has one.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from sd_tf.errors import InputError, unknown
from sd_tf.nn.attention import scaled_dot_product_attention
from sd_tf.nn.precision import at_least_float32
from sd_tf.text.config import T5Config, check_buckets

FEED_FORWARDS = ("relu", "gated-gelu")  # T5 1.0; 1.1 and Flan-T5 (Shazeer 2020)
MASKED = -1e9  # finite, so that a row without any token of a text is no NaN


def relative_position_buckets(tokens: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each pair of positions.

    Half of the buckets are for keys behind the query. Of each half, the first half has one bucket for each
    distance, and the others grow with the logarithm of it up to `max_distance`, beyond which all is one.

    Args:
        tokens: of a row.
        num_buckets: 4 or more.
        max_distance: more than a quarter of `num_buckets`.

    Returns:
        int32 (tokens, tokens): of query i and key j.

    Reference: Raffel et al. 2020, section 2.1; `mesh_tensorflow.transformer.transformer_layers`.
    """
    offset = np.arange(tokens)[np.newaxis, :] - np.arange(tokens)[:, np.newaxis]  # (query, key)
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # In float32 and in this order: at a bucket's edge, rounding decides.
    ratio = np.maximum(distance, exact).astype("float32") / np.float32(exact)
    steps = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    logarithmic = np.minimum(exact + steps.astype("int64"), half - 1)
    buckets = np.where(distance < exact, distance, logarithmic)
    return (buckets + half * (offset > 0)).astype("int32")


class _Configured:
    """A Keras layer or model built from a `T5Config`."""

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config

    def get_config(self):
        return super().get_config() | {"config": dataclasses.asdict(self.config)}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        return cls(T5Config(**config.pop("config")), **config)


class _Uncast(_Configured, keras.layers.Layer):
    """A layer whose inputs outgrow float16, such as the sum of all layers before: they are not cast to it."""

    def __init__(self, config, **kwargs):
        super().__init__(config, autocast=False, **kwargs)


def _dense(owner, name, inputs, outputs, deviation, dtype=None):
    dense = keras.layers.Dense(
        outputs,
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(stddev=deviation),
        name=name,
        dtype=dtype or owner.dtype_policy,
    )
    dense.build((None, None, inputs))
    return dense


@keras.saving.register_keras_serializable("sd_tf")
class T5LayerNorm(_Uncast):
    """Divides by the root mean square, in float32; returns the compute dtype.

    Reference: Zhang & Sennrich 2019, equation 4.
    """

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")

    def call(self, x):
        x = at_least_float32(x)
        inverse = ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + self.config.layer_norm_epsilon)
        return ops.cast(x * inverse * ops.cast(self.gamma, x.dtype), self.compute_dtype)


@keras.saving.register_keras_serializable("sd_tf")
class T5Attention(_Uncast):
    """Multi-head self-attention with its four projections; that of the first layer has the biases, too."""

    def __init__(self, config, has_relative_attention_bias=False, **kwargs):
        super().__init__(config, **kwargs)
        self.has_relative_attention_bias = has_relative_attention_bias

    def get_config(self):
        return super().get_config() | {"has_relative_attention_bias": self.has_relative_attention_bias}

    def build(self, shape):
        width, inner = self.config.d_model, self.config.num_heads * self.config.d_kv
        self.q = _dense(self, "q", width, inner, (width * self.config.d_kv) ** -0.5)
        self.k = _dense(self, "k", width, inner, width**-0.5)
        self.v = _dense(self, "v", width, inner, width**-0.5)
        self.o = _dense(self, "o", inner, width, inner**-0.5)
        if self.has_relative_attention_bias:
            self.relative_attention_bias = keras.layers.Embedding(
                self.config.relative_attention_num_buckets,
                self.config.num_heads,
                keras.initializers.RandomNormal(stddev=width**-0.5),
                name="relative_attention_bias",
                dtype=self.dtype_policy,
            )
            self.relative_attention_bias.build((None,))

    def position_bias(self, tokens):
        """float32 (1, heads, query, key): what positions add to the logits."""
        buckets = relative_position_buckets(
            tokens, self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance
        )
        bias = at_least_float32(self.relative_attention_bias(buckets))  # (query, key, heads)
        return ops.transpose(bias, (2, 0, 1))[None]

    def call(self, x, bias):
        """(batch, tokens, width) -> the same; `bias`, float32, is added to the logits."""
        # Which are not scaled, and may outgrow float16.
        query, key = at_least_float32(self.q(x)), at_least_float32(self.k(x))
        mixed = scaled_dot_product_attention(query, key, self.v(x), self.config.num_heads, bias, scale=1.0)
        return self.o(mixed)


@keras.saving.register_keras_serializable("sd_tf")
class T5DenseReluDense(_Configured, keras.layers.Layer):
    """The dense layers of T5 1.0, or those of 1.1, which are gated."""

    def build(self, shape):
        width, inner = self.config.d_model, self.config.d_ff
        self.is_gated = self.config.feed_forward_proj == "gated-gelu"
        if self.is_gated:
            self.wi_0 = _dense(self, "wi_0", width, inner, width**-0.5)
            self.wi_1 = _dense(self, "wi_1", width, inner, width**-0.5)
        else:
            self.wi = _dense(self, "wi", width, inner, width**-0.5)
        # What it sums up outgrows float16; transformers keeps it in float32, too.
        policy = self.dtype_policy if self.compute_dtype == "float64" else "float32"
        self.wo = _dense(self, "wo", inner, width, inner**-0.5, policy)

    def call(self, x):
        """(batch, tokens, width) -> the same, float32 or wider."""
        if not self.is_gated:
            return self.wo(ops.relu(self.wi(x)))
        gate = ops.gelu(at_least_float32(self.wi_0(x)), approximate=True)
        return self.wo(gate * at_least_float32(self.wi_1(x)))


@keras.saving.register_keras_serializable("sd_tf")
class T5LayerSelfAttention(_Uncast):
    """Attention behind a norm and beside a residual."""

    def __init__(self, config, has_relative_attention_bias=False, **kwargs):
        super().__init__(config, **kwargs)
        self.has_relative_attention_bias = has_relative_attention_bias

    def get_config(self):
        return super().get_config() | {"has_relative_attention_bias": self.has_relative_attention_bias}

    def build(self, shape):
        self.SelfAttention = T5Attention(
            self.config, self.has_relative_attention_bias, name="SelfAttention", dtype=self.dtype_policy
        )
        self.layer_norm = T5LayerNorm(self.config, name="layer_norm", dtype=self.dtype_policy)
        self.SelfAttention.build(shape)
        self.layer_norm.build(shape)

    def call(self, x, bias):
        """float32 (batch, tokens, width) -> the same; `bias` is added to the attention's logits."""
        return x + ops.cast(self.SelfAttention(self.layer_norm(x), bias), x.dtype)


@keras.saving.register_keras_serializable("sd_tf")
class T5LayerFF(_Uncast):
    """The dense layers behind a norm and beside a residual."""

    def build(self, shape):
        self.DenseReluDense = T5DenseReluDense(self.config, name="DenseReluDense", dtype=self.dtype_policy)
        self.layer_norm = T5LayerNorm(self.config, name="layer_norm", dtype=self.dtype_policy)
        self.DenseReluDense.build(shape)
        self.layer_norm.build(shape)

    def call(self, x):
        """float32 (batch, tokens, width) -> the same."""
        return x + ops.cast(self.DenseReluDense(self.layer_norm(x)), x.dtype)


@keras.saving.register_keras_serializable("sd_tf")
class T5Block(_Uncast):
    """One layer of the encoder: attention, then the dense layers."""

    def __init__(self, config, has_relative_attention_bias=False, **kwargs):
        super().__init__(config, **kwargs)
        self.has_relative_attention_bias = has_relative_attention_bias

    def get_config(self):
        return super().get_config() | {"has_relative_attention_bias": self.has_relative_attention_bias}

    def build(self, shape):
        self.attention = T5LayerSelfAttention(
            self.config, self.has_relative_attention_bias, name="layer.0", dtype=self.dtype_policy
        )
        self.feed_forward = T5LayerFF(self.config, name="layer.1", dtype=self.dtype_policy)
        self.attention.build(shape)
        self.feed_forward.build(shape)

    def call(self, x, bias):
        """float32 (batch, tokens, width) -> the same; `bias` is added to the attention's logits."""
        return self.feed_forward(self.attention(x, bias))


@keras.saving.register_keras_serializable("sd_tf")
class T5Stack(_Uncast):
    """The layers of the encoder, and the norm behind them."""

    def build(self, shape):
        self.blocks = [
            T5Block(self.config, i == 0, name=f"block.{i}", dtype=self.dtype_policy)
            for i in range(self.config.num_layers)
        ]
        self.final_layer_norm = T5LayerNorm(self.config, name="final_layer_norm", dtype=self.dtype_policy)
        for layer in (*self.blocks, self.final_layer_norm):
            layer.build(shape)

    def call(self, x, mask):
        """Embedded tokens (batch, tokens, width) and their mask, bool -> states, of the compute dtype."""
        x = at_least_float32(x)
        bias = self.blocks[0].attention.SelfAttention.position_bias(x.shape[1])
        bias = bias + ops.where(mask, 0.0, MASKED)[:, None, None, :]  # (batch, heads, query, key)
        for block in self.blocks:
            x = block(x, bias)
        return self.final_layer_norm(x)


@keras.saving.register_keras_serializable("sd_tf")
class T5EncoderModel(_Configured, keras.Model):
    """T5's encoder: token ids to one state for each token.

    In half precision, the sum over layers, the logits, the norms and the dense layers' results stay in
    float32, because those of T5 outgrow float16.

    Args:
        config: `T5Config`; the default is T5-small's.
        **kwargs: name and dtype of the Keras model.

    Raises:
        InputError: the feed-forward layers are of an unknown kind, or there are too few buckets.

    Example:
        >>> states = T5EncoderModel()(ids, mask)  # (batch, tokens, 512)

    Reference: `transformers.T5EncoderModel`.
    """

    def __init__(self, config=None, **kwargs):
        config = config or T5Config()
        _check(config)
        super().__init__(config, **kwargs)

    def build(self, token_ids_shape=None, mask_shape=None):
        """Make the variables, whose shapes follow from the configuration alone."""
        self.shared = keras.layers.Embedding(
            self.config.vocab_size,
            self.config.d_model,
            keras.initializers.RandomNormal(stddev=1.0),
            name="shared",
            dtype=self.dtype_policy,
        )
        self.shared.build((None, None))
        self.encoder = T5Stack(self.config, name="encoder", dtype=self.dtype_policy)
        self.encoder.build((None, None, self.config.d_model))

    def call(self, token_ids, mask):
        """Encode token ids.

        Args:
            token_ids: int32 (batch, tokens), of any known number of tokens.
            mask: bool (batch, tokens), True at tokens of the text. No state attends to the others.

        Returns:
            (batch, tokens, d_model), of the compute dtype, behind the final norm.

        Raises:
            InputError: the number of tokens is unknown.
        """
        if token_ids.shape[1] is None:
            raise InputError("token_ids have an unknown number of tokens: give all rows one that is known.")
        return self.encoder(self.shared(token_ids), ops.cast(mask, "bool"))


def _check(config):
    if config.feed_forward_proj not in FEED_FORWARDS:
        raise unknown("feed_forward_proj", config.feed_forward_proj, FEED_FORWARDS)
    check_buckets(config)
