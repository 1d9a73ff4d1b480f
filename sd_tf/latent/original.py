"""Single files in the original layout of CompVis' and Stability AI's code, as community sites share them.

One `.safetensors` file holds all networks under the names of that code. It says no sizes: they are
read off the tensors' shapes. Where shapes do not tell, Stable Diffusion's own values stand.

References: CompVis/stable-diffusion, `v1-inference.yaml`, `openaimodel.py`, `model.py`;
Stability-AI/stablediffusion, `v2-inference-v.yaml`; mlfoundations/open_clip.
"""

import collections
import dataclasses
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from sd_tf.checkpoints.tensors import Tensor, read_file
from sd_tf.diffusion.schedules import ScheduleConfig
from sd_tf.errors import InputError
from sd_tf.latent.config import AutoencoderConfig, UNetConfig
from sd_tf.text.config import CLIPTextConfig

TOKENIZER = "openai/clip-vit-large-patch14"  # of both 1.x and 2.x, which single files leave out
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."

# Schedules that follow from the configuration, and parts of training, which most files have.
IGNORED = re.compile(
    r"model_ema\.(decay|num_updates)$"
    r"|(betas|alphas_cumprod|sqrt_|log_one_minus|posterior_|logvar|scale_factor|v_pred|ztsnr)"
    r"|first_stage_model\.loss\.|cond_stage_model\.logit_scale|cond_stage_model\.model\.(logit_scale|text_projection|"
    r"attn_mask)|cond_stage_model\.text_projection"
)

MOST_NAMED, LONGEST_NAMED = 5, 60  # prefixes of tensors that are not read, and their characters
NUMBER = "([0-9]{1,2})"  # of a layer; what has more digits is left over

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


class Original(NamedTuple):
    """What a single file holds: configurations, and for each part its tensors by diffusers' keys."""

    unet: UNetConfig
    autoencoder: AutoencoderConfig
    text: CLIPTextConfig
    schedule: ScheduleConfig
    pad_token: str | None  # where it is not the tokenizer's own: OpenCLIP pads with token 0
    tensors: dict  # part -> key -> Tensor


def read(file: Path) -> Original:
    """Reads the names and shapes of a file; the values stay in it.

    Raises:
        InputError: the file is damaged, of another kind of model, or lacks a part.

    Warns:
        UserWarning: it holds tensors of no part, such as averaged weights, a LoRA or an optimizer's state.
    """
    found = read_file(file)
    tensors = {key: tensor for key, tensor in found.items() if not IGNORED.match(key)}
    kinds = {prefix: _under(prefix, tensors) for prefix in (UNET, VAE, CLIP, OPEN_CLIP)}
    if "conditioner.embedders.0" in " ".join(found) or any(key.startswith("joint_blocks") for key in found):
        raise InputError(f"{file} holds SDXL or SD 3: only Stable Diffusion 1.x and 2.x are supported")
    for prefix in (UNET, VAE):
        if not kinds[prefix]:
            raise InputError(f"{file} has no {prefix}*: this is no whole Stable Diffusion checkpoint")
    second = bool(kinds[OPEN_CLIP])
    if not second and not kinds[CLIP]:
        raise InputError(f"{file} has neither {CLIP}* nor {OPEN_CLIP}*: its text tower is missing")
    try:
        unet, of_unet = _unet(kinds[UNET])
        autoencoder, of_autoencoder = _autoencoder(kinds[VAE])
        text, of_text = _open_clip(kinds[OPEN_CLIP]) if second else _clip(kinds[CLIP])
    except KeyError as error:
        raise InputError(f"{file}: missing the tensor {error.args[0]}") from None
    places = UNET, VAE, OPEN_CLIP if second else CLIP
    _warn_of_others(file, [key for key in tensors if not key.startswith(places)])
    autoencoder = dataclasses.replace(
        autoencoder, sample_size=unet.sample_size * 2 ** (len(autoencoder.block_out_channels) - 1)
    )
    schedule = ScheduleConfig(prediction_type="v_prediction" if second else "epsilon")
    parts = {"unet": of_unet, "autoencoder": of_autoencoder, "text_encoder": of_text}
    return Original(unet, autoencoder, text, schedule, "!" if second else None, parts)


def _warn_of_others(file, keys):
    """Counts the tensors that are not read, by the beginnings of their names."""
    if not keys:
        return
    prefixes = collections.Counter(key.partition(".")[0][:LONGEST_NAMED] for key in keys)
    named = [f"{prefix} ({number})" for prefix, number in prefixes.most_common(MOST_NAMED)]
    more = f" and {len(prefixes) - MOST_NAMED} more" if len(prefixes) > MOST_NAMED else ""
    warnings.warn(
        f"{file}: {len(keys)} tensor{'s' * (len(keys) > 1)} of no part of Stable Diffusion "
        f"{'are' if len(keys) > 1 else 'is'} not read, by prefix: {', '.join(named)}{more}",
        stacklevel=2,
    )


def _under(prefix, tensors):
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _count(pattern, tensors):
    """One more than the highest number that the pattern's group finds in the keys, 0 for none."""
    return max((int(found[1]) + 1 for key in tensors if (found := re.match(pattern, key))), default=0)


def _size(tensor, axis):
    """A side of a tensor that says a network's size."""
    tensor.check_dtype()  # a quantised one has other shapes
    if axis >= len(tensor.shape):
        raise InputError(f"{tensor.file}: {tensor.key} has shape {tensor.shape}, which says no size")
    return tensor.shape[axis]


def _renamed(tensors, rules):
    """Tensors by diffusers' keys; those that no rule knows keep their own, for `check` to name."""
    renamed = {}
    for key, tensor in tensors.items():
        stem, _, last = key.rpartition(".")
        _put(renamed, f"{rules.get(stem, stem)}.{last}", tensor)
    return renamed


def _put(renamed, key, tensor):
    """Under a key that no other tensor of the file has."""
    before = renamed.setdefault(key, tensor)
    if before is not tensor:
        raise InputError(
            f"{tensor.file}: {before.key} and {tensor.key} are both {key}: another writer's file?"
        )


# -- the UNet ---------------------------------------------------------------------------------------


def _unet(tensors):
    blocks = _count(rf"input_blocks\.{NUMBER}\.", tensors)
    downs = [i for i in range(blocks) if f"input_blocks.{i}.0.op.weight" in tensors]
    levels, layers = len(downs) + 1, (blocks - 1 - len(downs)) // (len(downs) + 1)
    widths, attends = [], []
    for level in range(levels):
        first = 1 + level * (layers + 1)
        widths.append(_size(tensors[f"input_blocks.{first}.0.out_layers.3.weight"], 0))
        attends.append(f"input_blocks.{first}.1.proj_in.weight" in tensors)
    middle = "middle_block.1."
    width = _size(tensors[middle + "transformer_blocks.0.attn2.to_k.weight"], 1)
    linear = len(tensors[middle + "proj_in.weight"].shape) == 2
    config = UNetConfig(
        sample_size=96 if linear else 64,  # 768 and 512 pixels
        in_channels=_size(tensors["input_blocks.0.0.weight"], 1),
        out_channels=_size(tensors["out.2.weight"], 0),
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        attention_head_dim=tuple(max(1, each // 64) for each in widths) if linear else 8,
        cross_attention_dim=width,
        use_linear_projection=linear,
    )
    rules, stems = {original: current for current, original in UNET_ENDS.items()}, _stems_of_places(tensors)
    for level in range(levels):
        for i in range(layers):
            at = f"input_blocks.{1 + level * (layers + 1) + i}"
            rules |= _resnet(f"{at}.0", f"down_blocks.{level}.resnets.{i}")
            rules |= _inner(f"{at}.1", f"down_blocks.{level}.attentions.{i}", stems)
        rules[f"input_blocks.{(level + 1) * (layers + 1)}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for i in range(layers + 1):
            at = f"output_blocks.{level * (layers + 1) + i}"
            rules |= _resnet(f"{at}.0", f"up_blocks.{level}.resnets.{i}")
            rules |= _inner(f"{at}.1", f"up_blocks.{level}.attentions.{i}", stems)
        last = f"output_blocks.{level * (layers + 1) + layers}.{2 if attends[levels - 1 - level] else 1}.conv"
        rules[last] = f"up_blocks.{level}.upsamplers.0.conv"
    rules |= _resnet("middle_block.0", "mid_block.resnets.0")
    rules |= _inner("middle_block.1", "mid_block.attentions.0", stems)
    rules |= _resnet("middle_block.2", "mid_block.resnets.1")
    return config, _renamed(tensors, rules)


def _resnet(original, current):
    return {f"{original}.{theirs}": f"{current}.{ours}" for ours, theirs in RESNET.items()}


def _inner(original, current, stems):
    """Transformers have the same names inside."""
    return {stem: current + stem.removeprefix(original) for stem in stems[original]}


def _stems_of_places(tensors):
    """Place, as "middle_block.1" or "input_blocks.4.1" -> keys that begin so, without their last words."""
    stems = collections.defaultdict(set)
    for key in tensors:
        parts = key.split(".")
        if ".conv." not in key:
            stems[".".join(parts[: 2 if parts[0] == "middle_block" else 3])].add(key.rpartition(".")[0])
    return stems


# -- the autoencoder --------------------------------------------------------------------------------


def _autoencoder(tensors):
    levels = _count(rf"encoder\.down\.{NUMBER}\.", tensors)
    layers = _count(rf"encoder\.down\.0\.block\.{NUMBER}\.", tensors)
    widths = [_size(tensors[f"encoder.down.{level}.block.0.conv2.weight"], 0) for level in range(levels)]
    config = AutoencoderConfig(
        in_channels=_size(tensors["encoder.conv_in.weight"], 1),
        out_channels=_size(tensors["decoder.conv_out.weight"], 0),
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        latent_channels=_size(tensors["post_quant_conv.weight"], 0),
    )
    rules = {}
    for half in ("encoder", "decoder"):
        rules[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        for i in range(2):
            rules |= _vae_resnet(f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}")
        rules[f"{half}.mid.attn_1.norm"] = f"{half}.mid_block.attentions.0.group_norm"
    for level in range(levels):
        for i in range(layers):
            rules |= _vae_resnet(
                f"encoder.down.{level}.block.{i}", f"encoder.down_blocks.{level}.resnets.{i}"
            )
        up = f"decoder.up_blocks.{levels - 1 - level}"
        for i in range(layers + 1):
            rules |= _vae_resnet(f"decoder.up.{level}.block.{i}", f"{up}.resnets.{i}")
        rules[f"encoder.down.{level}.downsample.conv"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        rules[f"decoder.up.{level}.upsample.conv"] = f"{up}.upsamplers.0.conv"
    renamed = _renamed(tensors, rules)
    for half in ("encoder", "decoder"):
        for ours, theirs in VAE_ATTENTION.items():
            original, current = f"{half}.mid.attn_1.{theirs}", f"{half}.mid_block.attentions.0.{ours}"
            for last in ("weight", "bias"):
                if ours != "group_norm" and (tensor := renamed.pop(f"{original}.{last}", None)) is not None:
                    _put(renamed, f"{current}.{last}", _squeezed(tensor))
    return config, renamed


def _vae_resnet(original, current):
    names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
    return {f"{original}.{theirs}": f"{current}.{ours}" for theirs, ours in names.items()}


def _squeezed(tensor: Tensor) -> Tensor:
    """A convolution of one pixel as the dense layer that it is."""
    if len(tensor.shape) != 4 or tensor.shape[2:] != (1, 1):
        return tensor
    return dataclasses.replace(tensor, shape=tensor.shape[:2], view=lambda values: values[:, :, 0, 0])


# -- the text towers --------------------------------------------------------------------------------


def _clip(tensors):
    """OpenAI's ViT-L/14, of Stable Diffusion 1.x: transformers' own names."""
    config = _text_config(
        tensors["text_model.embeddings.token_embedding.weight"],
        tensors["text_model.embeddings.position_embedding.weight"],
        tensors["text_model.encoder.layers.0.mlp.fc1.weight"],
        _count(rf"text_model\.encoder\.layers\.{NUMBER}\.", tensors),
        "quick_gelu",
    )
    return config, tensors


def _open_clip(tensors):
    """OpenCLIP's ViT-H/14, of Stable Diffusion 2.x, whose last layer is not read: it is left out."""
    layers = _count(rf"transformer\.resblocks\.{NUMBER}\.", tensors) - 1
    config = _text_config(
        tensors["token_embedding.weight"],
        tensors["positional_embedding"],
        tensors["transformer.resblocks.0.mlp.c_fc.weight"],
        layers,
        "gelu",
    )
    renamed = {current: tensors[original] for current, original in OPEN_CLIP_ENDS.items()}
    known = set(OPEN_CLIP_ENDS.values())
    for i in range(layers + 1):
        original, current = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        of_layer = {key for key in tensors if key.startswith(f"{original}.")}
        known |= of_layer
        if i == layers:
            break
        for ours, theirs in OPEN_CLIP_LAYER.items():
            for last in ("weight", "bias"):
                renamed[f"{current}.{ours}.{last}"] = tensors[f"{original}.{theirs}.{last}"]
        for third, name in enumerate(("q_proj", "k_proj", "v_proj")):
            for last in ("weight", "bias"):
                tensor = tensors[f"{original}.attn.in_proj_{last}"]
                renamed[f"{current}.self_attn.{name}.{last}"] = _third(tensor, third)
    for key, tensor in tensors.items():
        if key not in known:
            _put(renamed, key, tensor)
    return config, renamed


def _third(tensor: Tensor, third: int) -> Tensor:
    """Queries, keys or values of a projection that holds all three."""
    rows, rest = divmod(_size(tensor, 0), 3)
    if rest:
        raise InputError(
            f"{tensor.file}: {tensor.key} has shape {tensor.shape}, which is not that of three in one"
        )
    part = slice(third * rows, (third + 1) * rows)
    return dataclasses.replace(tensor, shape=(rows, *tensor.shape[1:]), view=lambda values: values[part])


def _text_config(tokens, positions, inner, layers, activation):
    width = _size(tokens, 1)
    return CLIPTextConfig(
        vocab_size=_size(tokens, 0),
        hidden_size=width,
        intermediate_size=_size(inner, 0),
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),  # of 64 channels in every published tower
        max_position_embeddings=_size(positions, 0),
        hidden_act=activation,
    )
