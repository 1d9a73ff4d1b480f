"""Adaptations as files: diffusers' `pytorch_lora_weights.safetensors`, and kohya's, as community sites have.

diffusers   unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight   (rank, inputs)
                                                                      ....lora_B.weight     (outputs, rank)
kohya       lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
                                                                      ....lora_up.weight, .alpha
"""

import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sd_tf.checkpoints.header import read_header
from sd_tf.checkpoints.tensors import DTYPES, read_file, save_tensors
from sd_tf.errors import InputError, shown, unknown
from sd_tf.files import parse_json
from sd_tf.latent.adaptations import LowRank
from sd_tf.latent.options import LORA_LAYOUTS

FILE = "pytorch_lora_weights.safetensors"
MOST_SCALE = 10_000  # of alpha / rank; it is 1 or 2 as a rule, and far more makes pictures NaN
MOST_PATTERNS = 5000  # each is held against every layer's name
_DOWN = ("lora_A", "lora_down", "lora.down", "lora_linear_layer.down")
_UP = ("lora_B", "lora_up", "lora.up", "lora_linear_layer.up")
_PART = re.compile(rf"(.*?)\.({'|'.join(map(re.escape, _DOWN + _UP))})\.weight|(.*)\.alpha")
_METADATA = "lora_adapter_metadata"  # where diffusers writes peft's `LoraConfig`
_PATTERN = re.compile(r"\^?[\w.]+", re.ASCII)


def read_lora(file, modules) -> dict[str, LowRank]:
    """Reads an adaptation in either layout.

    Args:
        file: a safetensors file, or a folder with `FILE` in it or, as kohya's are named freely, one other.
        modules: of the model that it is for, `Adaptations.modules`.

    Returns:
        Module -> `LowRank`.

    Raises:
        InputError: the file is damaged, no LoRA, or has layers that the model has not.
    """
    file = Path(file)
    root = file if file.is_dir() else None
    file = file if root is None else _file_in(root)
    known = _known_names(modules)
    parts = {}
    for key, tensor in read_file(file, root).items():
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
        before = parts.setdefault(known[name], {}).setdefault(part, tensor)
        if before is not tensor:
            raise InputError(
                f"{file}: {shown(before.key, 300)} and {shown(key, 300)} are both the {part} of "
                f"{known[name]}: two LoRAs in one file?"
            )
    strengths = _strengths_of_metadata(file, root)
    changes = {module: _change(file, module, found, strengths) for module, found in parts.items()}
    if not changes:
        raise InputError(f"{file} holds no LoRA")
    return changes


def _change(file, module, found, strengths):
    """The change of a module, of its parts in the file."""
    if not {"down", "up"} <= found.keys():
        raise InputError(f"{file}: {module} has {' and '.join(found)} only: it is damaged")
    down, up = (found[part].read().astype(np.float32) for part in ("down", "up"))
    rank = down.shape[0] if down.ndim else 0
    if (
        down.ndim not in (2, 4)
        or up.ndim != down.ndim
        or up.shape[1] != rank
        or math.prod(up.shape) != up.shape[0] * rank
        or not rank
    ):
        raise InputError(
            f"{file}: {module} is {up.shape} times {down.shape}, which is no product of low rank"
        )
    if "alpha" in found:
        if math.prod(found["alpha"].shape) != 1:
            shape = found["alpha"].shape
            raise InputError(f"{file}: the alpha of {module} is {shape}, not one number: it is damaged")
        scale = float(found["alpha"].read().item()) / rank
    else:
        network, _, layer = module.partition(".")
        scale = strengths.get(network, _Strength()).scale(layer, rank)
    if not all(map(np.all, map(np.isfinite, (down, up, np.float64(scale))))):
        raise InputError(f"{file}: {module} has values that are not finite")
    if abs(scale) > MOST_SCALE:
        raise InputError(
            f"{file}: {module} is multiplied by {scale:g}, {MOST_SCALE} is the most: its alpha is wrong"
        )
    return LowRank(down, up, scale)


def name_of(file) -> str:
    """What an adaptation is called if nobody says: as its file or, where that is `FILE`, its folder."""
    path = Path(os.path.abspath(file))  # "." has a name then, and a link keeps its own
    if path.is_dir():
        return path.name
    return path.parent.name if path.name == FILE else path.stem


def write_lora(file, changes: dict[str, LowRank], layout: str = "diffusers", dtype: str = "float32"):
    """Writes an adaptation that diffusers' `load_lora_weights` opens, in its own layout or in kohya's.

    The scale goes into `up`, so that alpha is the rank wherever a reader looks for it.
    """
    if layout not in LORA_LAYOUTS:
        raise unknown("layout of a LoRA", layout, LORA_LAYOUTS)
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


def _file_in(folder):
    found = sorted(folder.glob("*.safetensors"))
    if (folder / FILE).is_file() or not found:
        return folder / FILE
    if len(found) > 1:
        raise InputError(
            f"{folder} holds {found[0].name} and {found[1].name}: name the file that is the LoRA"
        )
    return found[0]


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
        names[module.replace("text_encoder.text_model.", "text_encoder.")] = module  # with transformers 5
    return names


class _Strength(NamedTuple):
    """What peft's `LoraConfig` says of how much the changes of a network are."""

    alpha: float | None = None  # None: the rank
    alpha_pattern: dict = {}  # ends of layers' names, whole ones after ^ -> their own; the first that fits
    use_rslora: bool = False

    def scale(self, layer, rank):
        """alpha / rank or, stabilised, alpha / sqrt(rank) (Kalajdzievski 2023)."""
        whole = f"^{layer}", f"^{layer.removeprefix('text_model.')}"
        alpha = rank if self.alpha is None else self.alpha
        for end, own in self.alpha_pattern.items():
            if end in whole or f".{layer}".endswith(f".{end}"):
                alpha = own
                break
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _strengths_of_metadata(file, root):
    """ "unet" and "text_encoder" -> `_Strength`, where diffusers wrote it."""
    text = read_header(file, root).metadata.get(_METADATA)
    if text is None:
        return {}
    try:
        values = parse_json(text, _METADATA)
        strengths = {
            network: _Strength(
                float(values.get(f"{network}.lora_alpha", 8)),  # as peft has it
                {end: float(own) for end, own in (values.get(f"{network}.alpha_pattern") or {}).items()},
                bool(values.get(f"{network}.use_rslora")),
            )
            for network in ("unet", "text_encoder")
            if any(name.startswith(f"{network}.") for name in values)
        }
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InputError(
            f"{file}: its {_METADATA} is {shown(text)}, which is not what diffusers writes"
        ) from None
    for strength in strengths.values():
        if len(strength.alpha_pattern) > MOST_PATTERNS:
            raise InputError(
                f"{file}: alpha_pattern of its {_METADATA} has {len(strength.alpha_pattern)} entries, "
                f"{MOST_PATTERNS} are the most"
            )
        for end in strength.alpha_pattern:
            if not _PATTERN.fullmatch(end):  # a stranger's regular expression may take forever
                raise InputError(
                    f"{file}: alpha_pattern of its {_METADATA} has {shown(end)}: only ends of layers' names "
                    "are read, write those that it means"
                )
    return strengths
