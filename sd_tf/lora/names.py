"""What layers are called in files of adaptations, and which models are told by their layers' names.

diffusers   unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q
            unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora   before 0.18
peft        base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q
kohya       lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q
DeepFloyd   unet.down_blocks.1.attentions.0.add_k_proj
CompVis     lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

PEFT = "base_model.model."
LAYOUTS = ("diffusers", "kohya")  # that can be written

_PROJECTION = re.compile(r"(.*\.(?:attn[12]|attentions\.\d+))\.(to_(?:q|k|v|out)|add_[kv]_proj)(\.0)?")
TRANSFORMERS = {  # models of other kinds -> a pattern that one of their keys has
    "Flux": re.compile(r"(^|[._])(double_blocks|single_blocks|single_transformer_blocks)[._]"),
    "SD 3 or another transformer": re.compile(
        r"joint_blocks[._]|^lora_te3_|^text_encoder_3\.|^(transformer\.|lora_transformer_)"
    ),
}


class Naming(NamedTuple):
    """What is a family's own in files of adaptations.

    Attributes:
        models: what those that can be loaded are for, in error messages.
        others: models whose adaptations cannot be loaded -> a pattern that one of their keys has.
        versions: width of the text's states -> the version of the model that has it.
        original_names: layers as in `Adaptations.modules` -> those that have another name in the code that
            the architecture comes from -> that name, such as "input_blocks.1.1.proj_in".
    """

    models: str
    others: Mapping[str, re.Pattern] = {}
    versions: Mapping[int, str] = {}
    original_names: Callable = lambda layers: {}

    def other_model(self, keys) -> str | None:
        """The model that a file with these keys is for, if it is one that is known and not supported."""
        return next((name for name, known in self.others.items() if any(map(known.search, keys))), None)


def names_of_layers(layers, original: Mapping[str, str]) -> dict[str, str]:
    """Every name that a file may have for a layer -> its name in `Adaptations.modules`.

    Args:
        layers: names in `Adaptations.modules`.
        original: of some of them, the original name; see `Naming`.
    """
    names = {}
    for module in layers:
        network, _, layer = module.partition(".")
        own = [module, layer, f"{PEFT}{layer}"]
        own += [name.removesuffix(".0") for name in own if name.endswith("to_out.0")]  # diffusers before 0.19
        own += [name.replace("text_model.", "", 1) for name in own]  # with transformers 5
        if network == "unet" and (found := _PROJECTION.fullmatch(module)):
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
