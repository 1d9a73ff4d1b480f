"""A model's text tower, UNet and decoder as files of LiteRT and of ONNX, and what draws with them.

OUTPUT/draw.py                         draws; it needs neither this package nor TensorFlow
OUTPUT/settings.json, tokenizer.json
OUTPUT/float16/{text_encoder,unet,decoder}.tflite     the same for int8; or onnx/….onnx
"""

import json
import logging
import shutil

import numpy as np
import tensorflow as tf

from sd_tf.errors import InputError, install_extra
from sd_tf.exporting import draw
from sd_tf.generation.request import PICTURE_NOISE

FILES = {"encode": "text_encoder", "denoise": "unet", "decode": "decoder"}
LITERT = ("float16", "int8")
ONNX_OPSET = 18


def write_litert(model, folder, kind, progress=lambda text: None):
    """LiteRT's files, of fixed sizes: a prompt and what to lean away from, and one picture.

    Args:
        model: a `LatentDiffusion`.
        folder: made.
        kind: "float16" halves the weights; "int8" quarters them, and rounds what they are multiplied with to
            8 bits as it comes ("dynamic range"): faster, and pictures change.
        progress: called with the name of each file before it is made.
    """
    folder.mkdir()
    for name, (weights, function) in _functions(model, fixed=True).items():
        progress(f"writing {kind}/{FILES[name]}.tflite")
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], weights)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        (folder / f"{FILES[name]}.tflite").write_bytes(converter.convert())


def write_onnx(model, folder, progress=lambda text: None):
    """ONNX files, for any number of prompts and pictures.

    Args:
        model: a `LatentDiffusion`.
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
    for name, (_, function) in _functions(model, fixed=False).items():
        progress(f"writing onnx/{FILES[name]}.onnx")
        specs = function.structured_input_signature[0]
        proto, _ = tf2onnx.convert.from_function(
            tf.function(function), input_signature=specs, opset=ONNX_OPSET
        )
        _without_erfc(proto.graph)
        (folder / f"{FILES[name]}.onnx").write_bytes(proto.SerializeToString())


def write_what_draws(model, folder):
    """`draw.py` and what it reads besides networks."""
    tokenizer, schedule = model.tokenizer, model.schedule
    settings = {
        "alphas_cumprod": schedule.alphas_cumprod.tolist(),
        "final_alpha": schedule.final_level.signal**2,
        "prediction_type": schedule.config.prediction_type,
        "timestep_spacing": schedule.config.timestep_spacing,
        "steps_offset": schedule.config.steps_offset,
        "begin_end_padding": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "tokens": tokenizer.max_length,
        "words_of_several_tokens": tokenizer.continued,
        "latents": [*model.unet.config.latent_size, model.unet.config.in_channels],
        "noise_key": [PICTURE_NOISE, 0],
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
    tokenizer.save_joint(folder / "tokenizer.json")
    shutil.copyfile(draw.__file__, folder / "draw.py")


def _functions(model, fixed):
    """Name -> weights and graph, for arguments that are called `input_0`, `input_1`, …"""
    length, found = model.tokenizer.max_length, {}
    for name, (network, function, arguments) in model.engines.networks.items():
        number = None if not fixed else 1 if name == "decode" else 2
        specs = []
        for place, (shape, dtype) in enumerate(arguments):
            rest = [length if fixed and side is None else side for side in shape[1:]]
            specs.append(tf.TensorSpec([number, *rest], dtype, f"input_{place}"))
        graph = tf.function(lambda *inputs, f=function: f(*inputs), autograph=False)
        weights = tf.Module()
        weights.all = [variable.value for variable in network.variables]
        found[name] = weights, graph.get_concrete_function(*specs)
    return found


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
