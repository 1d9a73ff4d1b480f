"""New models: a preset, a vocabulary, and networks with random weights."""

import dataclasses

from sd_tf.checkpoints.sources import resolve
from sd_tf.data.open import open_data
from sd_tf.diffusion.schedules import NoiseSchedule
from sd_tf.errors import InputError, argument, shown
from sd_tf.generation.checks import check_whole
from sd_tf.latent.autoencoder import AutoencoderKL
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.options import MODEL, LatentOptions
from sd_tf.latent.presets import preset_named, preset_of
from sd_tf.latent.text_encoders import given_text_encoder
from sd_tf.latent.unet import UNet
from sd_tf.options import check_of_new_model
from sd_tf.text.bert import BertModel
from sd_tf.text.clip import CLIPTextModel
from sd_tf.text.config import BertConfig, CLIPTextConfig, T5Config
from sd_tf.text.known_words import read_words
from sd_tf.text.t5 import T5EncoderModel
from sd_tf.text.tokenizer import Tokenizer
from sd_tf.training.options import check_dtype
from sd_tf.training.provenance import Beginning, Provenance
from sd_tf.unread import random_network

TEXT_NETWORKS = {CLIPTextConfig: CLIPTextModel, T5Config: T5EncoderModel, BertConfig: BertModel}


def new_model(options: LatentOptions, data, dtype=None, seed=0) -> LatentDiffusion:
    """A model with random weights; its networks are made when they are first used.

    Args:
        options: preset, image size, text encoder and noise schedule.
        data: a data set of `sd_tf.open_data`; without a pretrained text encoder, a tokenizer is trained on
            its captions.
        dtype: a Keras precision policy; None for Keras' global one.
        seed: seed of the weights and of captions that are random.

    Raises:
        InputError: there is no such preset or text encoder, or the options do not fit together.
    """
    check_dtype(dtype)
    check_whole("seed", seed, 0, 2**32 - 1)
    data = open_data(data)
    name = options.preset or preset_of(data.name)
    preset = _resized(preset_named(name), options.image_size)
    preset = dataclasses.replace(preset, schedule=_schedule(preset.schedule, options))
    folder = options.text_encoder or preset.text_encoder or "none"
    if folder == "none":
        tokenizer, text = _learned_tokenizer(preset, data, seed, options.text_length)
        preset = dataclasses.replace(preset, text=text)
        text_encoder = random_network(CLIPTextModel, text, dtype, seed)
    else:
        tokenizer, text_encoder = given_text_encoder(folder, options.text_length, dtype)
        text = text_encoder.config
    unet = dataclasses.replace(preset.unet, cross_attention_dim=text.width)
    preset = dataclasses.replace(preset, unet=unet)
    networks = {
        "autoencoder": random_network(AutoencoderKL, preset.autoencoder, dtype, seed),
        "unet": random_network(UNet, unet, dtype, seed),
        "text_encoder": text_encoder,
    }
    model = LatentDiffusion(**networks, tokenizer=tokenizer, schedule=NoiseSchedule(preset.schedule))
    options = dataclasses.replace(options, preset=name)
    beginning = Beginning(preset, options, networks, folder == "none")
    model.dtype, model.provenance = dtype, Provenance(beginning, is_trained=False)
    model.recommended = preset.recommended
    if folder == "none":
        model.known_words = frozenset()
    else:
        model.known_words = read_words(resolve(folder, kind="text encoder", parts=("text_encoder",)))
    return model


def options_of_new_model(preset, options) -> LatentOptions:
    """What `LatentDiffusion.from_preset` was given.

    Raises:
        InputError: there is no such option, or it is of training.
    """
    check_of_new_model(LatentOptions, MODEL, options)
    return LatentOptions(preset=preset, **options)


def sketched(model: LatentDiffusion) -> LatentDiffusion:
    """A model with the same configurations and random weights; its networks are made when first used."""
    text_network = TEXT_NETWORKS[type(model.text_config)]
    kinds = {"autoencoder": AutoencoderKL, "unet": UNet, "text_encoder": text_network}
    parts = {
        name: random_network(kind, model.config_of(name), model.dtype, seed=0) for name, kind in kinds.items()
    }
    return LatentDiffusion(**parts, tokenizer=model.tokenizer, schedule=model.schedule)


def copied(model: LatentDiffusion) -> LatentDiffusion:
    """A model of the same networks, which compiles them by itself."""
    copy = LatentDiffusion(model.autoencoder, model.unet, model.text_encoder, model.tokenizer, model.schedule)
    copy.recommended = model.recommended
    return copy


def _learned_tokenizer(preset, data, seed, length):
    """A tokenizer trained on the data's captions, and the text encoder's configuration for it."""
    corpus = data.at(preset.autoencoder.sample_size, None, seed).corpus()
    length = preset.text.max_position_embeddings if length is None else length
    tokenizer = Tokenizer.learn(corpus, preset.vocab_size, length)
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    of_tokenizer = {name: getattr(tokenizer, name) for name in names}
    return tokenizer, dataclasses.replace(preset.text, max_position_embeddings=length, **of_tokenizer)


def _schedule(schedule, options):
    """The preset's noise schedule, overridden by the options."""
    given = {
        name: getattr(options, name)
        for name in ("prediction_type", "beta_schedule")
        if getattr(options, name) is not None
    }
    if options.zero_terminal_snr:
        # Trailing spacing starts sampling at the timestep without signal (Lin et al. 2023, section 3.3).
        given |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return dataclasses.replace(schedule, **given)


def _resized(preset, image_size):
    """The preset for another image size: latents grow with it."""
    before = preset.autoencoder.sample_size
    if image_size in (None, before):
        return preset
    autoencoder = dataclasses.replace(preset.autoencoder, sample_size=image_size)
    multiple = autoencoder.downsampling * 2 ** (len(preset.unet.block_out_channels) - 1)
    patch_size = preset.vision.patch_size * image_size // before
    if image_size % multiple or image_size % max(1, patch_size):
        raise InputError(
            f"{argument('image_size')} is {shown(image_size)}: the preset's networks need a multiple of "
            f"{multiple}"
        )
    return dataclasses.replace(
        preset,
        autoencoder=autoencoder,
        unet=dataclasses.replace(preset.unet, sample_size=image_size // autoencoder.downsampling),
        vision=dataclasses.replace(preset.vision, image_size=image_size, patch_size=patch_size),
    )
