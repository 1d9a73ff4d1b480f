"""LoRAs of Stable Diffusion: what CompVis' code calls the layers of its UNet, and models of other kinds."""

import re

from sd_tf.latent.original import RESNET, UNET_ENDS
from sd_tf.lora import files
from sd_tf.lora.adaptations import Change
from sd_tf.lora.names import TRANSFORMERS, Naming

_BLOCK = re.compile(
    r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)"
)


def read_lora(file, modules: dict[str, tuple[int, ...]]) -> dict[str, Change]:
    """Reads an adaptation of Stable Diffusion or of a model that was trained here.

    See `sd_tf.lora.files.read_lora`.
    """
    return files.read_lora(file, modules, NAMING)


def original_names(layers) -> dict[str, str]:
    """Layer of the UNet -> its name in CompVis' code, such as "input_blocks.1.1.proj_in"."""
    found = {layer: _BLOCK.fullmatch(layer.removeprefix("unet.")) for layer in layers}
    blocks = {layer: match.groups() for layer, match in found.items() if match}
    per_level = 1 + max((int(i) for side, _, _, i, _ in blocks.values() if side == "down"), default=0)
    attends = {number for side, number, kind, *_ in blocks.values() if (side, kind) == ("up", "attentions")}
    names = {f"unet.{ours}": theirs for ours, theirs in UNET_ENDS.items() if f"unet.{ours}" in found}
    for layer, (side, number, kind, i, rest) in blocks.items():
        place = _original_place(side, int(number or 0), kind, int(i), per_level, number in attends)
        last = {"resnets": RESNET.get(rest), "downsamplers": "op", "upsamplers": "conv"}.get(kind, rest)
        names[layer] = f"{place}.{last}"
    return names


def _original_place(side, number, kind, i, per_level, attends):
    """A block's part in CompVis' numbering, where the blocks of all levels stand in one row.

    Args:
        side: "down", "mid" or "up".
        number: level of the block.
        kind: what it is a part of.
        i: which one of that kind.
        per_level: residual blocks of each level on the way down; on the way up there is one more.
        attends: whether the level has attention on the way up.
    """
    first = number * (per_level + 1)
    if side == "mid":
        return f"middle_block.{2 * i if kind == 'resnets' else 1}"
    if kind == "downsamplers":
        return f"input_blocks.{first + per_level + 1}.0"
    if kind == "upsamplers":
        return f"output_blocks.{first + per_level}.{1 + attends}"
    block = f"input_blocks.{first + 1 + i}" if side == "down" else f"output_blocks.{first + i}"
    return f"{block}.{0 if kind == 'resnets' else 1}"


NAMING = Naming(
    "Stable Diffusion 1.x and 2.x",
    {
        **TRANSFORMERS,  # first: they have some of SDXL's names as well
        "SDXL": re.compile(
            r"^lora_te[12]_|^text_encoder_2\.|[._](add_embedding|label_emb)[._]|unet.*transformer_blocks[._][1-9]"
        ),
    },
    {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"},
    original_names,
)
