"""Text encoders of any kind in folders, as transformers and sentence-transformers write and read them.

The configuration and the tokenizer are read when a folder is opened, the weights when something is encoded.
Keras is imported only then.
"""

import functools
import json
from pathlib import Path

from sd_tf.checkpoints.config_files import BERT, CLIP_TEXT, T5
from sd_tf.checkpoints.networks import SHARD, config_of, filled
from sd_tf.checkpoints.replacing import replacing
from sd_tf.checkpoints.sources import refuse_links_out, resolve
from sd_tf.checkpoints.tensors import find, write
from sd_tf.checkpoints.tokenizers import load_tokenizer, text_length, tokenizer_folder
from sd_tf.checkpoints.weight_files import TRANSFORMERS
from sd_tf.errors import InputError, naming, shown, unknown
from sd_tf.files import parse_json, read_bytes, read_json, write_json, write_text
from sd_tf.quiet import import_tensorflow
from sd_tf.text.config import BertConfig, CLIPTextConfig, T5Config
from sd_tf.text.encoder import POOLINGS, TextEncoder, text_encoder_of
from sd_tf.text.subword_tokenizer import BERT_LENGTH, T5_LENGTH, read_bert_tokenizer, read_t5_tokenizer
from sd_tf.unread import Unread

MODULES, POOLING = "modules.json", "1_Pooling"  # of sentence-transformers
MOST_MODULES = 100_000  # bytes; real ones have 400
POOLING_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
PREFIXES = {"clip": ("CLIP",), "t5": ("T5",), "bert": ("Bert",)}  # of the classes that `architectures` names
MODEL_TYPES = {"clip_text_model": "clip", "clip": "clip", "t5": "t5", "bert": "bert"}
NOT_THE_ENCODERS = ("decoder.", "lm_head.")  # keys of a whole T5
NOT_BERTS = ("cls.", "classifier.", "qa_outputs.")  # keys of what stands on top of BERT
TOKENIZERS = {  # class of transformers -> that of its tokenizer
    "CLIPTextModel": "CLIPTokenizer",
    "CLIPTextModelWithProjection": "CLIPTokenizer",
    "T5EncoderModel": "T5TokenizerFast",
    "BertModel": "BertTokenizerFast",
}
OLD_NORMS = {"gamma": "weight", "beta": "bias"}  # in files that were converted from TensorFlow


def open_text_encoder(
    name_or_folder, length=None, dtype=None, revision=None, variant=None, tokenizer=None
) -> TextEncoder:
    """Opens a frozen text encoder: CLIP's text tower, T5's encoder, BERT or a sentence-transformer of it.

    Args:
        name_or_folder: a folder with `config.json`, weights and a tokenizer, as transformers writes it; a
            folder with `text_encoder` and `tokenizer` in it, as diffusers does; or a hub id.
        length: tokens of a row; None for all positions of CLIP, 77 for T5, and 64 for BERT or as many
            positions as it has, if those are fewer.
        dtype: a Keras precision policy, such as "bfloat16"; None for Keras' global one.
        revision: branch, tag or commit of a hub id.
        variant: of the weights, such as "fp16".
        tokenizer: a folder or hub id of a tokenizer to use instead.

    Returns:
        A `TextEncoder`, which reads its weights when it first encodes. Of a whole T5 the decoder is left out,
        and of a BERT what stands on top of it. The pooled state of BERT is the one that the files of
        sentence-transformers say, if they are there, and otherwise the mean of its states.

    Raises:
        InputError: there is no such folder, it is of another kind, a file is missing or damaged, or its parts
            do not fit together. What is wrong with the weights is said when they are read.
    """
    source = resolve(name_or_folder, revision, variant, "text encoder", ("text_encoder",))
    folder = source / "text_encoder" if (source / "text_encoder").is_dir() else source
    if folder != source:
        refuse_links_out(source, ("text_encoder", "tokenizer"))
    network = unread_text_encoder(folder, dtype, variant)
    words = (
        resolve(tokenizer, kind="tokenizer", parts=())
        if tokenizer is not None
        else _tokenizer_folder(source, folder)
    )
    refuse_links_out(words)
    words = _read_tokenizer(network.config, words, length)
    options = {}
    if isinstance(network.config, BertConfig):
        options["pooling"], options["normalize"] = _read_pooling(folder)
    with naming(folder):
        return text_encoder_of(network.config, words, functools.cache(network.read), **options)


def open_for_preset(folder, length, usual) -> TextEncoder:
    """The text encoder of a new model.

    Args:
        folder: as of `open_text_encoder`.
        length: tokens of a row that the user asked for; None for none.
        usual: those of the preset, or as many as it has positions for; None for the encoder's own.
    """
    if length is not None or usual is None:
        return open_text_encoder(folder, length)
    found = open_text_encoder(folder)
    positions = getattr(found.config, "max_position_embeddings", usual)  # T5 has no limit
    return found if positions < usual else open_text_encoder(folder, usual)


def save_text_encoder_alone(encoder: TextEncoder, folder, dtype="float32", max_shard_size=SHARD):
    """Writes one folder with network and tokenizer, as sentence-transformers has it; see the function above.

    An older one in the folder is replaced.
    """
    with replacing(Path(folder)) as new:
        _write_network(new, encoder, dtype, max_shard_size, pooling=True)
        encoder.tokenizer.save(new)


def _write_network(folder, encoder, dtype, max_shard_size, pooling):
    kind = {CLIPTextConfig: CLIP_TEXT, T5Config: T5, BertConfig: BERT}[type(encoder.config)]
    network = encoder.network()
    architecture = {"architectures": [type(network).__name__]}
    write_json(folder / "config.json", kind.to_json(encoder.config, architecture))
    write(folder, TRANSFORMERS, network, dtype, max_shard_size)
    if kind is BERT and pooling:
        _write_pooling(folder, encoder)


def unread_text_encoder(folder, dtype=None, variant=None, architecture=None) -> Unread:
    """The network of a text encoder's folder: its configuration is read now, its weights later.

    Args:
        folder: as transformers writes it; a path.
        dtype, variant: see `open_text_encoder`.
        architecture: the class of transformers that it is, one of `TOKENIZERS`; None for what the
            configuration says.

    Raises:
        InputError: the configuration is of another kind, missing or damaged.
    """
    values, file = config_of(folder)
    kind = _kind_of(values, file) if architecture is None else _kind_of_class(architecture)
    return _UNREAD[kind](Path(folder), values, file, dtype, variant)


def tokenizer_of_model(config, source, other=None, pad_token=None):
    """The tokenizer of a whole model, for a text encoder of that configuration.

    Args:
        config: of the text encoder.
        source: the model's folder. Of T5 and BERT, its tokenizer says how many tokens a row has.
        other: a folder or hub id of a tokenizer to use instead.
        pad_token: padding of CLIP's tokenizer to use instead of its own.
    """
    if isinstance(config, CLIPTextConfig):
        return load_tokenizer(other or source, config.max_position_embeddings, pad_token)
    return _read_tokenizer(config, tokenizer_folder(other or source), text_length(source))


def _read_tokenizer(config, folder, length):
    if isinstance(config, CLIPTextConfig):
        return load_tokenizer(folder, config.max_position_embeddings if length is None else length)
    if isinstance(config, T5Config):
        return read_t5_tokenizer(folder, T5_LENGTH if length is None else length)
    own_length = min(BERT_LENGTH, config.max_position_embeddings)
    return read_bert_tokenizer(folder, own_length if length is None else length)


def save_text_encoder_folders(
    encoder: TextEncoder, folder, dtype="float32", max_shard_size=SHARD, pooling=True
):
    """Writes `text_encoder` and `tokenizer` in a folder, which transformers and `open_text_encoder` open.

    What is in the folder besides stays.

    Args:
        encoder: one of `open_text_encoder`, or made of the same parts.
        folder: made if it is missing.
        dtype: of the tensors in the files, "float32", "float16" or "bfloat16".
        max_shard_size: most bytes of one file, a whole number or a string such as "5GB".
        pooling: whether files say how BERT's pooled state is made; not where nothing reads it.

    Raises:
        InputError: the folder cannot be written, or the dtype or the size is invalid.
    """
    folder = Path(folder)
    with replacing(folder / "text_encoder") as new:
        _write_network(new, encoder, dtype, max_shard_size, pooling)
    with replacing(folder / "tokenizer") as new:
        encoder.tokenizer.save(new)


def _kind_of_class(name):
    return next((kind for kind, prefixes in PREFIXES.items() if name.startswith(prefixes)), None)


def _kind_of(values, file):
    """What a configuration is of: "clip", "t5" or "bert"."""
    model_type, architectures = values.get("model_type"), values.get("architectures")
    if model_type is None and isinstance(architectures, list) and architectures:
        named = str(architectures[0])
        kind = _kind_of_class(named)
        if kind is not None:
            return kind
        raise InputError(f"{file}: architectures names {shown(named)}, not CLIP, T5 or BERT")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        with naming(file):
            raise unknown("model_type", model_type, MODEL_TYPES)
    return MODEL_TYPES[model_type]


def _tokenizer_folder(source, folder):
    """Where the tokenizer of a text encoder is: beside it, in it, or in a folder of the same number."""
    places = [folder.parent / folder.name.replace("text_encoder", "tokenizer"), source / "tokenizer"]
    if not folder.name.startswith("text_encoder"):
        places = [source / "tokenizer"]
    return next((place for place in places if place.is_dir()), folder)


# -- CLIP ---------------------------------------------------------------------------------------------


def _unread_clip(folder, values, file, dtype, variant):
    def read():
        import_tensorflow()
        from sd_tf.checkpoints.clip import load_text_encoder

        return load_text_encoder(folder, dtype, variant)

    return Unread(CLIP_TEXT.from_json(_text_values(values), file), read)


def _text_values(values):
    """The text tower's part of the configuration of a whole CLIP."""
    if "text_config" not in values:
        return values
    text = values["text_config"]
    projection = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
    return text | projection if isinstance(text, dict) else text


# -- T5 -----------------------------------------------------------------------------------------------


def _unread_t5(folder, values, file, dtype, variant):
    config = T5.from_json(values, file)

    def read():
        import_tensorflow()
        from sd_tf.text.t5 import T5EncoderModel

        tensors = _t5_names(find(folder, TRANSFORMERS, variant))
        return filled(lambda: T5EncoderModel(config, dtype=dtype), config, tensors, folder)

    return Unread(config, read)


def _t5_names(tensors):
    """The encoder's keys of a file, with one name for the embedding, which files have under two."""
    tensors = {key: each for key, each in tensors.items() if not key.startswith(NOT_THE_ENCODERS)}
    second = tensors.pop("encoder.embed_tokens.weight", None)
    if second is None:
        return tensors
    first = tensors.setdefault("shared.weight", second)
    if first.shape != second.shape:
        raise InputError(
            f"{second.file}: {second.key} has shape {second.shape}, {first.key} {first.shape}: they are one "
            "embedding"
        )
    return tensors


# -- BERT ---------------------------------------------------------------------------------------------


def _unread_bert(folder, values, file, dtype, variant):
    config = BERT.from_json(values, file)

    def read():
        import_tensorflow()
        from sd_tf.text.bert import BertModel

        tensors = _bert_names(find(folder, TRANSFORMERS, variant))
        pooler = "pooler.dense.weight" in tensors
        return filled(lambda: BertModel(config, pooler, dtype=dtype), config, tensors, folder)

    return Unread(config, read)


def _bert_names(tensors):
    """The keys of a file without those of what stands on top, and without older names."""
    prefix = "bert." if any(key.startswith("bert.") for key in tensors) else ""
    current = {}
    for key, tensor in tensors.items():
        if key.startswith(NOT_BERTS):
            continue
        module, _, last = key.removeprefix(prefix).rpartition(".")
        if module.endswith("LayerNorm"):
            last = OLD_NORMS.get(last, last)
        new = f"{module}.{last}"
        if new in current:
            raise InputError(
                f"{tensor.file}: {current[new].key} and {key} are both {new}: another writer's file?"
            )
        current[new] = tensor
    return current


def _read_pooling(folder):
    """(pooling, normalize) as the files of sentence-transformers say; the mean, unscaled, without them."""
    modules, normalize, pooling = folder / MODULES, False, "mean"
    if modules.is_file():
        found = parse_json(read_bytes(modules, MOST_MODULES, root=folder), modules)
        is_list = isinstance(found, list) and all(isinstance(each, dict) for each in found)
        names = [str(each.get("type")).rpartition(".")[2] for each in found] if is_list else None
        if names not in (
            ["Transformer"],
            ["Transformer", "Pooling"],
            ["Transformer", "Pooling", "Normalize"],
        ):
            raise InputError(
                f"{modules} has the modules {shown(names or found)}: only Transformer, then Pooling, then "
                "Normalize are supported"
            )
        normalize = "Normalize" in names
    file = folder / POOLING / "config.json"
    if file.is_file():
        values = read_json(file, root=folder)
        modes = [mode for name, mode in POOLING_MODES.items() if values.get(name) is True]
        all_modes = [name for name in values if name.startswith("pooling_mode_") and values[name] is True]
        if values.get("pooling_mode") in POOLINGS and not all_modes:  # sentence-transformers 5.4 and on
            modes = all_modes = [values["pooling_mode"]]
        if len(modes) != 1 or len(all_modes) != 1:
            said = {name: value for name, value in values.items() if name.startswith("pooling_mode")}
            raise InputError(
                f"{file} says {shown(said, 300)}: only one of {', '.join(POOLINGS)} is supported"
            )
        pooling = modes[0]
    return pooling, normalize


def _write_pooling(folder, encoder):
    """The pooling, as sentence-transformers writes it."""
    names = [("", "Transformer"), (POOLING, "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(names[: 3 if encoder.normalize else 2])
    ]
    (folder / POOLING).mkdir()
    modes = {name: encoder.pooling == mode for name, mode in POOLING_MODES.items()}
    write_json(folder / POOLING / "config.json", {"word_embedding_dimension": encoder.width, **modes})
    write_text(folder / MODULES, json.dumps(modules, indent=2) + "\n")


_UNREAD = {"clip": _unread_clip, "t5": _unread_t5, "bert": _unread_bert}
