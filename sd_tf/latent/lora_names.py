"""What layers are called in files of adaptations, and which other models' layers are told by their names.

diffusers   unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q
            unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora   before 0.18
peft        base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q
kohya       lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q
CompVis     lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q
"""

import re

from sd_tf.latent.original import RESNET, UNET_ENDS

PEFT = "base_model.model."
VERSIONS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # by the context's width

_BLOCK = re.compile(
    r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)"
)
# In this order: SD 3 and Flux have some of SDXL's names as well.
_OTHERS = {
    "Flux": re.compile(r"(^|[._])(double_blocks|single_blocks|single_transformer_blocks)[._]"),
    "SD 3 or another transformer": re.compile(
        r"joint_blocks[._]|^lora_te3_|^text_encoder_3\.|^(transformer\.|lora_transformer_)"
    ),
    "SDXL": re.compile(
        r"^lora_te[12]_|^text_encoder_2\.|[._](add_embedding|label_emb)[._]|unet.*transformer_blocks[._][1-9]"
    ),
}


def names_of_layers(layers) -> dict[str, str]:
    """Every name that a file may have for a layer -> its name in `Adaptations.modules`."""
    names, original = {}, original_names(layers)
    for module in layers:
        network, _, layer = module.partition(".")
        own = [module, layer, f"{PEFT}{layer}"]
        own += [name.removesuffix(".0") for name in own if name.endswith("to_out.0")]  # diffusers before 0.19
        own += [name.replace("text_model.", "", 1) for name in own]  # with transformers 5
        if network == "unet" and (found := re.fullmatch(r"(.*\.attn[12])\.(to_(?:q|k|v|out))(\.0)?", module)):
            own.append(f"{found[1]}.processor.{found[2]}_lora")
        own.append(kohya_name(module))
        if module in original:
            own.append(kohya_name(f"unet.{original[module]}"))
        names |= dict.fromkeys(own, module)
    return names


def kohya_name(module: str) -> str:
    """The name of a module in kohya's layout."""
    network, _, layer = module.partition(".")
    return ("lora_unet_" if network == "unet" else "lora_te_") + layer.replace(".", "_")


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


def other_model(keys) -> str | None:
    """The model that a file with these keys is for, if it is one that is known and not supported."""
    return next((name for name, known in _OTHERS.items() if any(map(known.search, keys))), None)
