"""The frozen text encoder that a new latent diffusion model is given."""

import dataclasses
import functools

from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.errors import InputError, argument
from sd_tf.text.config import CLIPTextConfig
from sd_tf.unread import Unread


def given_text_encoder(name, length=None, dtype=None):
    """The tokenizer and the unread network of a text encoder: CLIP's, T5 or BERT.

    States of T5 and BERT do not attend to padding, as these networks were trained; diffusers draws so with
    the model, since its configuration says `use_attention_mask`.

    Args:
        name: a bundled name, a folder or a hub id.
        length: tokens of a row, for T5 and BERT; None for the usual number of theirs.
        dtype: a Keras precision policy; None for Keras' global one.

    Raises:
        InputError: there is no such text encoder, or the length does not fit to it.
    """
    encoder = open_text_encoder(name, length, dtype)
    config = encoder.config
    if isinstance(config, CLIPTextConfig):
        if length not in (None, config.max_position_embeddings):
            raise InputError(
                f"{argument('text_length')} is {length}, but {name} is a CLIP, which reads "
                f"{config.max_position_embeddings} tokens: leave it out"
            )
        return encoder.tokenizer, Unread(config, encoder.network)
    config = dataclasses.replace(config, use_attention_mask=True)

    @functools.cache
    def read():
        network = encoder.network()
        network.config = config
        return network

    return encoder.tokenizer, Unread(config, read)
