"""CLIP: the text tower that conditions a model, the image tower that judges it, and their pretraining.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; layer for
layer the networks of `transformers.CLIPModel`. Sublayers carry its module names, so that a variable's
path is its key in a checkpoint.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from sd_tf.errors import InputError, unknown
from sd_tf.nn.attention import scaled_dot_product_attention
from sd_tf.text.config import CLIPTextConfig, CLIPVisionConfig

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1], over OpenAI's training pictures
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
LARGEST_LOGIT_SCALE = math.log(100.0)  # beyond it training grew unstable (Radford et al. 2021, section 2.5)

# Before `transformers` 4.31 every configuration named this id, and the end of a text was found as its
# highest id. Those files are still in use.
LEGACY_EOS_TOKEN_ID = 2

ACTIVATIONS = {
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "gelu": lambda x: ops.gelu(x, approximate=False),
}


class TowerOutput(NamedTuple):
    """What a tower returns."""

    last_hidden_state: Any  # (batch, tokens, width)
    pooled: Any  # (batch, width): the state that stands for the whole text or image


class _Configured:
    """A Keras layer or model built from the configuration of one tower."""

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config

    def get_config(self):
        tower = "text" if isinstance(self.config, CLIPTextConfig) else "vision"
        return super().get_config() | {"tower": tower, "config": dataclasses.asdict(self.config)}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        kind = {"text": CLIPTextConfig, "vision": CLIPVisionConfig}[config.pop("tower")]
        return cls(kind(**config.pop("config")), **config)


def _normal(stddev):
    # One for each variable: a Keras initializer draws the same numbers whenever it is called.
    return keras.initializers.RandomNormal(stddev=stddev)


@keras.saving.register_keras_serializable("sd_tf")
class CLIPAttention(_Configured, keras.layers.Layer):
    """Multi-head self-attention with its four projections."""

    def build(self, shape):
        width = self.config.hidden_size
        into = width**-0.5 * (2 * self.config.num_hidden_layers) ** -0.5
        for name, stddev in (("q_proj", into), ("k_proj", into), ("v_proj", into), ("out_proj", width**-0.5)):
            dense = keras.layers.Dense(
                width, kernel_initializer=_normal(stddev), name=name, dtype=self.dtype_policy
            )
            dense.build(shape)
            setattr(self, name, dense)

    def call(self, x, attention_mask=None):
        """(batch, tokens, width) -> the same; `attention_mask` is added to the logits."""
        if attention_mask is not None:
            # Keras has cast it to the compute dtype, as it does all float arguments; logits are float32.
            attention_mask = ops.cast(attention_mask, "float32")
        mixed = scaled_dot_product_attention(
            self.q_proj(x), self.k_proj(x), self.v_proj(x), self.config.num_attention_heads, attention_mask
        )
        return self.out_proj(mixed)


@keras.saving.register_keras_serializable("sd_tf")
class CLIPMLP(_Configured, keras.layers.Layer):
    """Two dense layers with the tower's activation between."""

    def build(self, shape):
        width, inner = self.config.hidden_size, self.config.intermediate_size
        out_of = width**-0.5 * (2 * self.config.num_hidden_layers) ** -0.5
        self.fc1 = keras.layers.Dense(
            inner, kernel_initializer=_normal((2 * width) ** -0.5), name="fc1", dtype=self.dtype_policy
        )
        self.fc2 = keras.layers.Dense(
            width, kernel_initializer=_normal(out_of), name="fc2", dtype=self.dtype_policy
        )
        self.fc1.build(shape)
        self.fc2.build((*shape[:-1], inner))

    def call(self, x):
        """(batch, tokens, width) -> the same."""
        return self.fc2(ACTIVATIONS[self.config.hidden_act](self.fc1(x)))


@keras.saving.register_keras_serializable("sd_tf")
class CLIPEncoderLayer(_Configured, keras.layers.Layer):
    """Attention and MLP, each behind a layer norm and beside a residual."""

    def build(self, shape):
        self.layer_norm1 = _layer_norm(self, "layer_norm1")
        self.self_attn = CLIPAttention(self.config, name="self_attn", dtype=self.dtype_policy)
        self.layer_norm2 = _layer_norm(self, "layer_norm2")
        self.mlp = CLIPMLP(self.config, name="mlp", dtype=self.dtype_policy)
        for layer in (self.layer_norm1, self.self_attn, self.layer_norm2, self.mlp):
            layer.build(shape)

    def call(self, x, attention_mask=None):
        """(batch, tokens, width) -> the same; `attention_mask` is added to the attention's logits."""
        x = x + self.self_attn(self.layer_norm1(x), attention_mask=attention_mask)
        return x + self.mlp(self.layer_norm2(x))


@keras.saving.register_keras_serializable("sd_tf")
class CLIPEncoder(_Configured, keras.layers.Layer):
    """The stack of layers of a tower."""

    def build(self, shape):
        self.layers = [
            CLIPEncoderLayer(self.config, name=f"layers.{i}", dtype=self.dtype_policy)
            for i in range(self.config.num_hidden_layers)
        ]
        for layer in self.layers:
            layer.build(shape)

    def call(self, x, attention_mask=None):
        """(batch, tokens, width) -> a list of it, the states behind each layer."""
        states = []
        for layer in self.layers:
            x = layer(x, attention_mask=attention_mask)
            states.append(x)
        return states


@keras.saving.register_keras_serializable("sd_tf")
class CLIPTextEmbeddings(_Configured, keras.layers.Layer):
    """Learned token and position embeddings."""

    def build(self, shape):
        for name, rows in (
            ("token_embedding", self.config.vocab_size),
            ("position_embedding", self.config.max_position_embeddings),
        ):
            embedding = keras.layers.Embedding(
                rows, self.config.hidden_size, _normal(0.02), name=name, dtype=self.dtype_policy
            )
            embedding.build(shape)
            setattr(self, name, embedding)

    def call(self, token_ids):
        """int (batch, tokens) -> (batch, tokens, width)."""
        return self.token_embedding(token_ids) + self.position_embedding(ops.arange(token_ids.shape[1]))


@keras.saving.register_keras_serializable("sd_tf")
class CLIPVisionEmbeddings(_Configured, keras.layers.Layer):
    """Patches projected to tokens behind a class token, with learned position embeddings."""

    def build(self, shape):
        width, patch, channels = self.config.hidden_size, self.config.patch_size, self.config.num_channels
        self.tokens = (self.config.image_size // patch) ** 2 + 1
        self.class_embedding = self.add_weight(
            shape=(width,), initializer=_normal(width**-0.5), name="class_embedding"
        )
        self.patch_embedding = keras.layers.Conv2D(
            width,
            patch,
            strides=patch,
            use_bias=False,
            kernel_initializer=_normal(0.02),
            data_format="channels_last",
            name="patch_embedding",
            dtype=self.dtype_policy,
        )
        self.patch_embedding.build((None, None, None, channels))
        self.position_embedding = keras.layers.Embedding(
            self.tokens, width, _normal(0.02), name="position_embedding", dtype=self.dtype_policy
        )
        self.position_embedding.build((None,))

    def call(self, images):
        """(batch, size, size, channels) -> (batch, 1 + patches, width)."""
        width = self.config.hidden_size
        patches = ops.reshape(self.patch_embedding(images), (-1, self.tokens - 1, width))
        first = ops.broadcast_to(
            ops.cast(self.class_embedding, patches.dtype), (ops.shape(patches)[0], 1, width)
        )
        return ops.concatenate([first, patches], axis=1) + self.position_embedding(ops.arange(self.tokens))


@keras.saving.register_keras_serializable("sd_tf")
class CLIPTextTransformer(_Configured, keras.layers.Layer):
    """The text tower proper; `CLIPTextModel` is its public face."""

    def build(self, shape):
        states = (None, None, self.config.hidden_size)
        self.embeddings = CLIPTextEmbeddings(self.config, name="embeddings", dtype=self.dtype_policy)
        self.encoder = CLIPEncoder(self.config, name="encoder", dtype=self.dtype_policy)
        self.final_layer_norm = _layer_norm(self, "final_layer_norm")
        self.embeddings.build(shape)
        self.encoder.build(states)
        self.final_layer_norm.build(states)

    def call(self, token_ids, layer=-1):
        """As `CLIPTextModel.call`."""
        tokens, longest = token_ids.shape[1], self.config.max_position_embeddings
        if tokens is None or tokens > longest:
            raise InputError(f"token_ids have {tokens} tokens, the tower reads up to {longest}: pass fewer.")
        if not -self.config.num_hidden_layers <= layer <= -1:
            raise InputError(
                f"layer {layer} is not one of the tower's {self.config.num_hidden_layers}: -1 is the last."
            )
        causal = np.triu(np.full((tokens, tokens), -np.inf, "float32"), k=1)  # (query, key)
        states = self.encoder(self.embeddings(token_ids), attention_mask=causal)
        last = self.final_layer_norm(states[-1])
        if self.config.eos_token_id == LEGACY_EOS_TOKEN_ID:
            end = ops.argmax(token_ids, axis=-1)
        else:  # the first of them, as texts are padded with the end token
            end = ops.argmax(ops.cast(ops.equal(token_ids, self.config.eos_token_id), "int32"), axis=-1)
        pooled = ops.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        return TowerOutput(last if layer == -1 else self.final_layer_norm(states[layer]), pooled)


@keras.saving.register_keras_serializable("sd_tf")
class CLIPVisionTransformer(_Configured, keras.layers.Layer):
    """The image tower proper; `CLIPVisionModel` is its public face."""

    def build(self, shape):
        states = (None, None, self.config.hidden_size)
        self.embeddings = CLIPVisionEmbeddings(self.config, name="embeddings", dtype=self.dtype_policy)
        self.pre_layrnorm = _layer_norm(self, "pre_layrnorm")  # sic: the key in every published file
        self.encoder = CLIPEncoder(self.config, name="encoder", dtype=self.dtype_policy)
        self.post_layernorm = _layer_norm(self, "post_layernorm")
        self.embeddings.build(shape)
        for layer in (self.pre_layrnorm, self.encoder, self.post_layernorm):
            layer.build(states)

    def call(self, images):
        """As `CLIPVisionModel.call`."""
        size, channels = self.config.image_size, self.config.num_channels
        if tuple(images.shape[1:]) != (size, size, channels):
            raise InputError(
                f"images have the shape {tuple(images.shape)}, the tower sees (batch, {size}, {size}, "
                f"{channels}): resize them, as CLIPModel.preprocess does."
            )
        last = self.encoder(self.pre_layrnorm(self.embeddings(images)))[-1]
        return TowerOutput(last, self.post_layernorm(last[:, 0]))


@keras.saving.register_keras_serializable("sd_tf")
class CLIPTextModel(_Configured, keras.Model):
    """CLIP's text tower: token ids to one state for each token.

    Args:
        config: `CLIPTextConfig`; the default is OpenAI's ViT-L/14, the tower of Stable Diffusion 1.x.
        **kwargs: name and dtype of the Keras model.

    Raises:
        InputError: the activation is unknown or the heads do not divide the width.

    Reference: `transformers.CLIPTextModel`.
    """

    def __init__(self, config=None, **kwargs):
        config = config or CLIPTextConfig()
        _check(config)
        super().__init__(config, **kwargs)

    def build(self, token_ids_shape=None):
        """Make the variables, whose shapes follow from the configuration alone."""
        self.text_model = CLIPTextTransformer(self.config, name="text_model", dtype=self.dtype_policy)
        self.text_model.build((None, None))

    def call(self, token_ids, layer=-1):
        """Encode token ids.

        Args:
            token_ids: int32 (batch, tokens), up to the configuration's `max_position_embeddings` tokens.
            layer: -1 for the states behind the last layer, -2 for the penultimate and so on.

        Returns:
            `TowerOutput` of the compute dtype: `last_hidden_state` (batch, tokens, width) of that
            layer behind the final layer norm, and `pooled` (batch, width), the last layer's state
            at the end token. A state depends on its own and earlier tokens only.

        Raises:
            InputError: more tokens than the tower has positions, or no such layer.
        """
        return self.text_model(token_ids, layer=layer)


@keras.saving.register_keras_serializable("sd_tf")
class CLIPTextModelWithProjection(CLIPTextModel):
    """CLIP's text tower with its projection; `pooled` is then (batch, projection_dim).

    Reference: `transformers.CLIPTextModelWithProjection`, whose `text_embeds` is our `pooled`.
    """

    def build(self, token_ids_shape=None):
        """Make the variables, whose shapes follow from the configuration alone."""
        super().build(token_ids_shape)
        self.text_projection = _projection(self.config, "text_projection", self.dtype_policy)

    def call(self, token_ids, layer=-1):
        """As `CLIPTextModel.call`."""
        output = super().call(token_ids, layer=layer)
        return output._replace(pooled=self.text_projection(output.pooled))


@keras.saving.register_keras_serializable("sd_tf")
class CLIPVisionModel(_Configured, keras.Model):
    """CLIP's image tower, a vision transformer.

    Args:
        config: `CLIPVisionConfig`; the default is OpenAI's ViT-L/14.
        **kwargs: name and dtype of the Keras model.

    Raises:
        InputError: the activation is unknown or the heads do not divide the width.

    Reference: `transformers.CLIPVisionModel`.
    """

    def __init__(self, config=None, **kwargs):
        config = config or CLIPVisionConfig()
        _check(config)
        super().__init__(config, **kwargs)

    def build(self, images_shape=None):
        """Make the variables, whose shapes follow from the configuration alone."""
        self.vision_model = CLIPVisionTransformer(self.config, name="vision_model", dtype=self.dtype_policy)
        self.vision_model.build((None, None, None, self.config.num_channels))

    def call(self, images):
        """Encode images.

        Args:
            images: float (batch, size, size, 3), normalised as `CLIPModel.preprocess` does.

        Returns:
            `TowerOutput` of the compute dtype: `last_hidden_state` (batch, 1 + patches, width), the
            class token first, and `pooled` (batch, width), the class token behind a layer norm.

        Raises:
            InputError: the images are not of the tower's size.
        """
        return self.vision_model(images)


@keras.saving.register_keras_serializable("sd_tf")
class CLIPVisionModelWithProjection(CLIPVisionModel):
    """CLIP's image tower with its projection; `pooled` is then (batch, projection_dim).

    Reference: `transformers.CLIPVisionModelWithProjection`, whose `image_embeds` is our `pooled`.
    """

    def build(self, images_shape=None):
        """Make the variables, whose shapes follow from the configuration alone."""
        super().build(images_shape)
        self.visual_projection = _projection(self.config, "visual_projection", self.dtype_policy)

    def call(self, images):
        """As `CLIPVisionModel.call`."""
        output = super().call(images)
        return output._replace(pooled=self.visual_projection(output.pooled))


@keras.saving.register_keras_serializable("sd_tf")
class LogitScaleLimit(keras.constraints.Constraint):
    """Keeps cosines from being multiplied by more than 100, as OpenAI's training did."""

    def __call__(self, logit_scale):
        return ops.minimum(logit_scale, LARGEST_LOGIT_SCALE)


@keras.saving.register_keras_serializable("sd_tf")
class CLIPModel(keras.Model):
    """Both towers and their projections into one space.

    Args:
        text_config: `CLIPTextConfig`.
        vision_config: `CLIPVisionConfig` with the same `projection_dim`.
        **kwargs: name and dtype of the Keras model.

    Raises:
        InputError: a tower cannot be built or the two do not project into one space.

    Example:
        >>> features = model.image_features(model.preprocess(images))  # images in [-1, 1]
        >>> loss = contrastive_loss(model.text_features(ids), features, model.logit_scale, groups)

    Reference: `transformers.CLIPModel`.
    """

    def __init__(self, text_config=None, vision_config=None, **kwargs):
        text_config, vision_config = text_config or CLIPTextConfig(), vision_config or CLIPVisionConfig()
        _check(text_config)
        _check(vision_config)
        if text_config.projection_dim != vision_config.projection_dim:
            raise InputError(
                f"projection_dim is {text_config.projection_dim} for text and "
                f"{vision_config.projection_dim} for images: give both towers the same."
            )
        super().__init__(**kwargs)
        self.text_config, self.vision_config = text_config, vision_config

    def get_config(self):
        return super().get_config() | {
            "text_config": dataclasses.asdict(self.text_config),
            "vision_config": dataclasses.asdict(self.vision_config),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        text, vision = config.pop("text_config"), config.pop("vision_config")
        return cls(CLIPTextConfig(**text), CLIPVisionConfig(**vision), **config)

    def build(self, token_ids_shape=None, images_shape=None):
        """Make the variables, whose shapes follow from the configurations alone."""
        self.text_model = CLIPTextTransformer(self.text_config, name="text_model", dtype=self.dtype_policy)
        self.vision_model = CLIPVisionTransformer(
            self.vision_config, name="vision_model", dtype=self.dtype_policy
        )
        self.text_model.build((None, None))
        self.vision_model.build((None, None, None, self.vision_config.num_channels))
        self.text_projection = _projection(self.text_config, "text_projection", self.dtype_policy)
        self.visual_projection = _projection(self.vision_config, "visual_projection", self.dtype_policy)
        self.logit_scale = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(math.log(1 / 0.07)),
            constraint=LogitScaleLimit(),
            dtype="float32",  # its steps vanish in half precision
            aggregation="only_first_replica",  # replicas hold the same value: without it none may clamp it
            name="logit_scale",
        )

    def text_features(self, token_ids):
        """int32 (batch, tokens) -> float32 (batch, projection_dim) of length 1."""
        self._ensure_built()
        return _unit(self.text_projection(self.text_model(token_ids).pooled))

    def image_features(self, images):
        """Preprocessed float (batch, size, size, 3) -> float32 (batch, projection_dim) of length 1."""
        self._ensure_built()
        return _unit(self.visual_projection(self.vision_model(images).pooled))

    def call(self, token_ids, images):
        """Compare every text with every image.

        Args:
            token_ids: int32 (texts, tokens).
            images: float (images, size, size, 3), preprocessed.

        Returns:
            float32 (texts, images): cosines times exp(logit_scale).
        """
        return _logits(self.text_features(token_ids), self.image_features(images), self.logit_scale)

    def preprocess(self, images):
        """Images in [-1, 1] to what the image tower was trained on.

        The shorter side is resized to the tower's size (bicubic, antialiased), the middle square is
        cut out and the colours are normalised by OpenAI's mean and standard deviation.

        Args:
            images: float (batch, height, width, 3) in [-1, 1].

        Returns:
            float32 (batch, size, size, 3). Differentiable, so that it can guide.

        Raises:
            InputError: the images do not have three channels.

        Reference: openai/CLIP, `clip/clip.py`, `_transform`.
        """
        if len(images.shape) != 4 or images.shape[-1] != 3:
            raise InputError(
                f"images have the shape {tuple(images.shape)}: pass RGB images (batch, height, width, 3)."
            )
        images, size = ops.cast(images, "float32") / 2 + 0.5, self.vision_config.image_size
        height, width = images.shape[1:3]
        if (height, width) != (size, size):
            shorter = min(height, width)
            height, width = height * size // shorter, width * size // shorter
            images = ops.image.resize(
                images, (height, width), interpolation="bicubic", antialias=True, data_format="channels_last"
            )
            images = ops.clip(images, 0.0, 1.0)  # bicubic overshoots at edges
            top, left = (height - size) // 2, (width - size) // 2
            images = images[:, top : top + size, left : left + size]
        return (images - np.array(IMAGE_MEAN, "float32")) / np.array(IMAGE_STD, "float32")

    def _ensure_built(self):
        if not self.built:
            self.build()


def contrastive_loss(text_features, image_features, logit_scale, groups):
    """The symmetric contrastive loss of CLIP, in which captions may repeat.

    All pairs within a group are positives, among which the target is spread evenly: "a dress" ten
    times in a batch is not nine times wrong. With all groups different it is CLIP's loss.

    Args:
        text_features, image_features: (batch, dimension), of length 1; row i of both is a pair.
        logit_scale: logarithm of the factor on the cosines, as `CLIPModel.logit_scale`.
        groups: int (batch,), equal where texts say the same.

    Returns:
        float32 (batch,); the batch's loss is its mean.

    Reference: Radford et al. 2021, figure 3; Yang et al. 2022 (UniCL), equation 1.
    """
    logits = _logits(text_features, image_features, logit_scale)  # (texts, images)
    positives = ops.cast(ops.equal(groups[:, None], groups[None, :]), "float32")
    targets = positives / ops.sum(positives, axis=1, keepdims=True)
    text_to_image = -ops.sum(targets * ops.log_softmax(logits, axis=1), axis=1)
    image_to_text = -ops.sum(targets * ops.log_softmax(ops.transpose(logits), axis=1), axis=1)
    return (text_to_image + image_to_text) / 2


def _logits(text_features, image_features, logit_scale):
    cosines = ops.matmul(
        ops.cast(text_features, "float32"), ops.transpose(ops.cast(image_features, "float32"))
    )
    return cosines * ops.exp(ops.cast(logit_scale, "float32"))


def _unit(features):
    return ops.normalize(ops.cast(features, "float32"), axis=-1)


def _projection(config, name, policy):
    """From a tower's width into the space that texts and images share."""
    projection = keras.layers.Dense(
        config.projection_dim,
        use_bias=False,
        kernel_initializer=_normal(config.hidden_size**-0.5),
        name=name,
        dtype=policy,
    )
    projection.build((None, config.hidden_size))
    return projection


def _layer_norm(owner, name):
    return keras.layers.LayerNormalization(
        epsilon=owner.config.layer_norm_eps, name=name, dtype=owner.dtype_policy
    )


def _check(config):
    if config.hidden_act not in ACTIVATIONS:
        raise unknown("activation", config.hidden_act, ACTIVATIONS)
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"{config.num_attention_heads} heads do not divide the width {config.hidden_size}: "
            "change one of them."
        )
