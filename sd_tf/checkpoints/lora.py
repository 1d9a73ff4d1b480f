"""Adaptations as files: diffusers' `pytorch_lora_weights.safetensors`, and kohya's, as community sites have.

diffusers   unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight   (rank, inputs)
                                                                      ....lora_B.weight     (outputs, rank)
kohya       lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
                                                                      ....lora_up.weight, .alpha
"""

import json
import math
import re
from pathlib import Path

import numpy as np
from safetensors import safe_open

from sd_tf.checkpoints.tensors import DTYPES, read_file, save_tensors
from sd_tf.errors import InputError, shown, unknown
from sd_tf.latent.lora import LowRank

FILE = "pytorch_lora_weights.safetensors"
LAYOUTS = ("diffusers", "kohya")
_DOWN, _UP = ("lora_A", "lora_down", "lora.down"), ("lora_B", "lora_up", "lora.up")
_PART = re.compile(rf"(.*?)\.({'|'.join(map(re.escape, _DOWN + _UP))})\.weight|(.*)\.alpha")
_KOHYA = {"lora_unet_": "unet.", "lora_te_": "text_encoder."}
_METADATA = "lora_adapter_metadata"  # where diffusers says alpha


def read_lora(file, modules) -> dict[str, LowRank]:
    """Reads an adaptation in either layout.

    Args:
        file: a safetensors file, or a folder with `FILE` in it.
        modules: of the model that it is for, `Adaptations.modules`.

    Returns:
        Module -> `LowRank`.

    Raises:
        InputError: the file is damaged, no LoRA, or has layers that the model has not.
    """
    file = Path(file)
    file = file / FILE if file.is_dir() else file
    known = _known_names(modules)
    parts = {}
    for key, tensor in read_file(file).items():
        found = _PART.fullmatch(key)
        if not found:
            raise InputError(
                f"{file}: {shown(key)} is no part of a LoRA that this can read: DoRA, LoHa or another kind?"
            )
        name, part = (
            (found[1], "down" if found[2] in _DOWN else "up") if found[1] is not None else (found[3], "alpha")
        )
        if name not in known:
            raise InputError(
                f"{file}: {shown(name)} is no layer of this model: a LoRA for another architecture"
            )
        parts.setdefault(known[name], {})[part] = tensor
    alphas = _alphas_of_metadata(file)
    changes = {}
    for module, found in parts.items():
        if not {"down", "up"} <= found.keys():
            raise InputError(f"{file}: {module} has {' and '.join(found)} only: it is damaged")
        down, up = (found[part].read().astype(np.float32) for part in ("down", "up"))
        rank = down.shape[0] if down.ndim else 0
        if (
            down.ndim not in (2, 4)
            or up.ndim != down.ndim
            or up.shape[1] != rank
            or math.prod(up.shape) != up.shape[0] * rank
        ):
            raise InputError(
                f"{file}: {module} is {up.shape} times {down.shape}, which is no product of low rank"
            )
        alpha = (
            float(found["alpha"].read().reshape(-1)[0])
            if "alpha" in found
            else alphas.get(module.partition(".")[0], rank)
        )
        if not all(map(np.all, map(np.isfinite, (down, up, np.float64(alpha))))):
            raise InputError(f"{file}: {module} has values that are not finite")
        changes[module] = LowRank(down, up, alpha / rank)
    if not changes:
        raise InputError(f"{file} holds no LoRA")
    return changes


def write_lora(file, changes: dict[str, LowRank], layout: str = "diffusers", dtype: str = "float32"):
    """Writes an adaptation that diffusers' `load_lora_weights` opens, in its own layout or in kohya's.

    The scale goes into `up`, so that alpha is the rank wherever a reader looks for it.
    """
    if layout not in LAYOUTS:
        raise unknown("layout of a LoRA", layout, LAYOUTS)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    tensors = {}
    for module, change in changes.items():
        up = change.scale * change.up
        if layout == "diffusers":
            pair = {f"{module}.lora_A.weight": change.down, f"{module}.lora_B.weight": up}
        else:
            name = _kohya_name(module)
            pair = {f"{name}.lora_down.weight": change.down, f"{name}.lora_up.weight": up}
            pair[f"{name}.alpha"] = np.float32(change.rank)
        tensors |= {key: np.ascontiguousarray(value, DTYPES[dtype]) for key, value in pair.items()}
    save_tensors(tensors, Path(file))


def _kohya_name(module):
    network, _, layer = module.partition(".")
    return ("lora_unet_" if network == "unet" else "lora_te_") + layer.replace(".", "_")


def _known_names(modules):
    """Every name that a file may have for a module -> the module."""
    names = {}
    for module in modules:
        names[module] = names[_kohya_name(module)] = module
        names[module.removesuffix(".0") if module.endswith("to_out.0") else module] = (
            module  # diffusers before 0.19
        )
    return names


def _alphas_of_metadata(file):
    """ "unet" or "text_encoder" -> alpha, where diffusers wrote it."""
    with safe_open(file, framework="numpy") as opened:
        text = (opened.metadata() or {}).get(_METADATA)
    if text is None:
        return {}
    try:
        values = json.loads(text)
        return {
            network: float(values[f"{network}.lora_alpha"])
            for network in ("unet", "text_encoder")
            if f"{network}.lora_alpha" in values
        }
    except (ValueError, TypeError, RecursionError):
        raise InputError(
            f"{file}: its {_METADATA} is {shown(text)}, which is not what diffusers writes"
        ) from None
