"""`sd_tf.load` of GANs, which `GigaGAN.save` has written."""

from pathlib import Path

from sd_tf.checkpoints.sources import refuse_links_out, resolve
from sd_tf.checkpoints.text_encoders import open_text_encoder
from sd_tf.checkpoints.tokenizers import text_length
from sd_tf.errors import InputError, argument, naming, shown
from sd_tf.files import read_json
from sd_tf.gan.folder import MODEL_INDEX, load_network, unread_network
from sd_tf.gan.model import GigaGAN
from sd_tf.gan.settings import read_settings
from sd_tf.generation.conversions import Origin
from sd_tf.quiet import import_tensorflow
from sd_tf.text.known_words import read_words

PARTS = ("generator", "discriminator", "text_encoder")  # whose weights are downloaded


def load(name_or_folder, dtype=None, revision=None, variant=None, tokenizer=None, prediction_type=None):
    """Reads a `GigaGAN`; networks are read when they are first used.

    Args:
        name_or_folder: a bundled name, a folder of `GigaGAN.save` or a hub id.
        dtype: a Keras precision policy for the networks; None for Keras' global one.
        revision: branch, tag or commit of a hub id.
        variant: variant of the files, such as "fp16".
        tokenizer: a folder or hub id of a tokenizer to use instead of the model's.
        prediction_type: not of GANs, which predict no noise.

    Raises:
        InputError: there is no such model, it is of another kind, or a file is missing or damaged.
    """
    model = load_lazily(name_or_folder, dtype, revision, variant, tokenizer, prediction_type)
    import_tensorflow()
    return model


def load_lazily(
    name_or_folder, dtype=None, revision=None, variant=None, tokenizer=None, prediction_type=None
):
    """As `load`; TensorFlow is not imported yet."""
    if prediction_type is not None:
        raise InputError(
            f"{argument('prediction_type')} is {shown(prediction_type)}, but a GAN predicts no noise: leave "
            "it out"
        )
    source = resolve(name_or_folder, revision, variant, parts=PARTS)
    if not source.is_dir():
        raise InputError(f"{source} is a file: a GAN is a folder")
    refuse_links_out(source)
    read_json(source / MODEL_INDEX, root=source)
    generator, discriminator = (
        unread_network(source, name, dtype, variant) if (source / name).is_dir() else None
        for name in ("generator", "discriminator")
    )
    if generator is None:
        raise InputError(f"{source} has no generator: it is not a whole model")
    text_encoder = None
    if generator.config.text_dim is not None:
        text_encoder = open_text_encoder(source, text_length(source), None, None, variant, tokenizer)
    with naming(source):
        model = GigaGAN(generator, discriminator, text_encoder, read_settings(source))
    model.dtype, model.known_words = dtype, read_words(source)
    model.origin = Origin(source, tuple(part for part in PARTS if (source / part).is_dir()), variant)
    return model


def check(name_or_folder, revision=None, variant=None, tokenizer=None, prediction_type=None):
    """Raises `InputError` where `load` would, for all but the weights; imports no Keras and no TensorFlow."""
    load_lazily(name_or_folder, None, revision, variant, tokenizer, prediction_type)


def only_enlarges(name_or_folder, revision=None, variant=None, tokenizer=None, prediction_type=None) -> bool:
    """Whether the model enlarges pictures, and does not draw from text alone."""
    model = load_lazily(name_or_folder, None, revision, variant, tokenizer, prediction_type)
    return model.small_size is not None


def settings_folder(folder: Path) -> Path:
    """Where its settings are; see `sd_tf.families.settings_folder`."""
    return folder


def with_snapshot(model: GigaGAN, snapshot: Path, variant=None) -> GigaGAN:
    """The GAN with the generator of a snapshot; see `sd_tf.families.with_snapshot`."""
    generator = load_network(snapshot, "generator", variant=variant)
    if generator.config != model.generator_config:
        raise InputError(
            f"{snapshot / 'config.json'} is not that of the run's model: it is no snapshot of this run"
        )
    found = GigaGAN(generator, None, model.text_encoder, model.recommended)
    found.dtype, found.known_words = model.dtype, model.known_words
    return found
