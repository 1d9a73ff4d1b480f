"""A model's networks as files of LiteRT and of ONNX, and what draws with them.

OUTPUT/draw.py                         draws; it needs neither this package nor TensorFlow
OUTPUT/settings.json, tokenizer.json
OUTPUT/float16/{text_encoder,unet,decoder}.tflite     the same for int8; or onnx/….onnx
OUTPUT/float16/{text_encoder,base,sr2}.tflite         of a cascade
"""

import json
import logging
import shutil

import numpy as np
import tensorflow as tf

from sd_tf.errors import InputError, install_extra
from sd_tf.exporting import draw
from sd_tf.exporting.parts import parts_of
from sd_tf.generation.request import PICTURE_NOISE

LITERT = ("float16", "int8")
ONNX_OPSET = 18


def write_litert(model, folder, kind, progress=lambda text: None):
    """LiteRT's files, of fixed sizes: a prompt and what to lean away from, and one picture.

    Args:
        model: a `LatentDiffusion` or a `CascadedDiffusion`.
        folder: made.
        kind: "float16" halves the weights; "int8" quarters them, and rounds what they are multiplied with to
            8 bits as it comes ("dynamic range"): faster, and pictures change.
        progress: called with the name of each file before it is made.
    """
    folder.mkdir()
    for file, (weights, function) in _functions(parts_of(model), fixed=True).items():
        progress(f"writing {kind}/{file}.tflite")
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], weights)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        (folder / f"{file}.tflite").write_bytes(converter.convert())


def write_onnx(model, folder, progress=lambda text: None):
    """ONNX files, for any number of prompts and pictures.

    Args:
        model: a `LatentDiffusion` or a `CascadedDiffusion`.
        folder: made.
        progress: called with the name of each file before it is made.

    Raises:
        InputError: tf2onnx is not installed.
    """
    try:
        import tf2onnx
    except ImportError:
        raise InputError(f"tf2onnx is not installed, which writes ONNX: {install_extra('onnx')}") from None
    folder.mkdir()
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # of Erfc it says that it cannot
    for file, (_, function) in _functions(parts_of(model), fixed=False).items():
        progress(f"writing onnx/{file}.onnx")
        specs = function.structured_input_signature[0]
        proto, _ = tf2onnx.convert.from_function(
            tf.function(function), input_signature=specs, opset=ONNX_OPSET
        )
        _without_erfc(proto.graph)
        (folder / f"{file}.onnx").write_bytes(proto.SerializeToString())


def write_what_draws(model, folder):
    """`draw.py` and what it reads besides networks."""
    parts = parts_of(model)
    tokenizer = parts.tokenizer
    row, first = tokenizer.row([]), tokenizer.first
    settings = {
        "begin": row[:first].tolist(),
        "end": row[first : tokenizer.max_length - tokenizer.room].tolist(),
        "padding": int(tokenizer.pad_token_id),
        "tokens": tokenizer.max_length,
        "reads_mask": parts.reads_mask,
        "words_of_several_tokens": tokenizer.continued,
        "stages": [_settings_of(stage) for stage in parts.stages],
        "has_decoder": parts.decode is not None,
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
    tokenizer.save_joint(folder / "tokenizer.json")
    shutil.copyfile(draw.__file__, folder / "draw.py")


def _settings_of(stage):
    schedule = stage.schedule
    settings = {
        "network": stage.network.file,
        "alphas_cumprod": schedule.alphas_cumprod.tolist(),
        "final_alpha": schedule.final_level.signal**2,
        "prediction_type": schedule.config.prediction_type,
        "timestep_spacing": schedule.config.timestep_spacing,
        "steps_offset": schedule.config.steps_offset,
        "shape": list(stage.shape),
        "noise_key": [PICTURE_NOISE, stage.first_draw],
        "thresholding": stage.thresholding._asdict(),
    }
    if stage.small_size is None:
        return settings
    level = {"timestep": int(stage.noising.t), "signal": stage.noising.signal, "noise": stage.noising.noise}
    return settings | {"augmentation": level | {"noise_key": [PICTURE_NOISE, stage.noising_draw]}}


def _functions(parts, fixed):
    """File -> weights and graph, for arguments that are called `input_0`, `input_1`, …"""
    length, found = parts.tokenizer.max_length, {}
    for network in parts.networks:
        number = None if not fixed else _rows(parts, network)
        specs = []
        for place, (shape, dtype) in enumerate(network.arguments):
            rest = [length if fixed and side is None else side for side in shape[1:]]
            specs.append(tf.TensorSpec([number, *rest], dtype, f"input_{place}"))
        graph = tf.function(lambda *inputs, f=network.function: f(*inputs), autograph=False)
        weights = tf.Module()
        weights.all = [variable.value for variable in network.model.variables]
        found[network.file] = weights, graph.get_concrete_function(*specs)
    return found


def _rows(parts, network):
    """How many at once a file of a fixed size takes: two where there is a negative prompt."""
    enlarging = [stage.network for stage in parts.stages if stage.small_size is not None]
    return 1 if network is parts.decode or network in enlarging else 2  # which few guide


def _without_erfc(graph):
    """Erfc, which ONNX has not, as 1 - Erf."""
    from onnx import helper, numpy_helper

    nodes = []
    for node in graph.node:
        if node.op_type != "Erfc":
            nodes.append(node)
            continue
        [given], [wanted] = node.input, node.output
        nodes.append(helper.make_node("Erf", [given], [f"{wanted}/erf"]))
        nodes.append(helper.make_node("Sub", ["one_of_erfc", f"{wanted}/erf"], [wanted]))
    if len(nodes) > len(graph.node):
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "one_of_erfc"))
    del graph.node[:]
    graph.node.extend(nodes)
