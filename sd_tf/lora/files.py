"""Adaptations as files: LoRA, LoCon, LoHa, LoKr, DoRA and full differences, as diffusers, peft, kohya and
LyCORIS write them.

diffusers   unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight   (rank, inputs)
                                                                      ....lora_B.weight     (outputs, rank)
kohya       lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
                                                                      ....lora_up.weight, .alpha

Layers' names are in `names`, the parts of each kind in `parts`.
"""

import re
from pathlib import Path

import numpy as np

from sd_tf.checkpoints.tensors import DTYPES, read_file, save_tensors
from sd_tf.errors import InputError, shown, unknown
from sd_tf.lora.adaptations import Change, LowRank, check_shape
from sd_tf.lora.names import LAYOUTS, PEFT, Naming, kohya_name, names_of_layers
from sd_tf.lora.parts import KINDS, build, read_change, split_key, transposed_factors
from sd_tf.lora.strengths import Strength, read_strengths

FILE = "pytorch_lora_weights.safetensors"  # diffusers' name
PEFT_FILE = "adapter_model.safetensors"
STAGE = re.compile(r"base|sr\d")  # the folders of a cascade's stages


def read_lora(file, modules: dict[str, tuple[int, ...]], naming: Naming) -> dict[str, Change]:
    """Reads an adaptation in any layout.

    Args:
        file: a safetensors file, or a folder with `FILE` in it, peft's `PEFT_FILE` or, as kohya's are named
            freely, one other.
        modules: of the model that it is for, `Adaptations.modules`.
        naming: of the model's family.

    Returns:
        Module -> `Change`.

    Raises:
        InputError: the file is damaged, no adaptation, or has layers or shapes that the model has not.
    """
    file = Path(file)
    root = file if file.is_dir() else None
    file = file if root is None else _file_in(root)
    tensors = read_file(file, root)
    parts = _parts_of_modules(file, tensors, modules, naming)
    if not parts:
        raise InputError(f"{file} holds no LoRA")
    outlines = {module: build(f"{file}: {module}", found, modules[module]) for module, found in parts.items()}
    _check_context_width(file, outlines, modules, naming.versions)
    for module, outline in outlines.items():
        check_shape(file, module, outline.shape, modules[module])
    strengths = read_strengths(file, root, any(key.startswith(PEFT) for key in tensors))
    changes = {}
    for module, found in parts.items():
        network, _, layer = module.partition(".")
        strength = strengths.get(network, Strength())
        changes[module] = read_change(f"{file}: {module}", found, modules[module], layer, strength)
    return changes


def _parts_of_modules(file, tensors, modules, naming):
    """Module -> part, as in `parts.KINDS` -> tensor."""
    layers = [module for module in modules if not module.endswith(".bias")]
    known = names_of_layers(layers, naming.original_names(layers))
    parts = {}
    for key, tensor in tensors.items():
        found = split_key(key)
        module = None if found is None else known.get(found[0], found[0]) + found[1]
        if module not in modules:
            _refuse(file, tensors, key, found, naming)
        before = parts.setdefault(module, {}).setdefault(found[2], tensor)
        if before is not tensor:
            raise InputError(
                f"{file}: {shown(before.key, 300)} and {shown(key, 300)} are both the {found[2]} of "
                f"{module}: two LoRAs in one file?"
            )
    return {module: transposed_factors(found) for module, found in parts.items()}


def _refuse(file, tensors, key, found, naming):
    """Says why a key belongs to no layer of the model."""
    other = naming.other_model(tensors)
    if other is not None:
        raise InputError(f"{file} is a LoRA of {other}: only those of {naming.models} can be loaded")
    if found is None:
        raise InputError(
            f"{file}: {shown(key)} is no part of a LoRA that can be read: these are {', '.join(KINDS)}, "
            "and DoRA of them"
        )
    raise InputError(
        f"{file}: {shown(found[0] + found[1])} is no layer of this model: a LoRA for another architecture"
    )


def _check_context_width(file, outlines, modules, versions):
    """Cross-attention tells which text encoder an adaptation was trained with."""
    for module, outline in outlines.items():
        if module.endswith((".attn2.to_k", ".attn2.to_v")) and len(outline.shape) > 1:
            width, own = outline.shape[1], modules[module][1]
            if width != own and width in versions:
                raise InputError(
                    f"{file} is a LoRA of {versions[width]}, whose text encoder is {width} wide, and this "
                    f"model's is {own} wide: load a model of that version"
                )


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
            name = kohya_name(module)
            pair = {f"{name}.lora_down.weight": change.down, f"{name}.lora_up.weight": up}
            pair[f"{name}.alpha"] = np.float32(change.rank)
        tensors |= {key: np.ascontiguousarray(value, DTYPES[dtype]) for key, value in pair.items()}
    save_tensors(tensors, Path(file))


def _file_in(folder: Path) -> Path:
    """The adaptation in a folder: the file of diffusers, of peft, or the only one.

    Raises:
        InputError: there are several.
    """
    found = sorted(folder.glob("*.safetensors"))
    for name in (FILE, PEFT_FILE):
        if (folder / name).is_file():
            return folder / name
    if not found:
        of_stages = sorted(file for file in folder.glob(f"*/{FILE}") if STAGE.fullmatch(file.parent.name))
        if of_stages:
            raise InputError(
                f"{folder} holds the LoRA of a cascade's stages, such as {of_stages[0]}: load it into a "
                "cascade"
            )
        return folder / FILE
    if len(found) > 1:
        raise several(folder, [file.name for file in found])
    return found[0]


def several(place, names) -> InputError:
    """The error for a place that holds several files, of which none has a name that tells."""
    return InputError(
        f"{place} holds {names[0]} and {names[1]}: name the file that is the LoRA, such as "
        f"weight_name={names[0]!r}"
    )
