"""Chooses the UNet weights to fine-tune: all, cross-attention, or LoRA; and DreamBooth's prior pictures."""

from pathlib import Path

import numpy as np

from sd_tf.checkpoints.names import key_of
from sd_tf.data.pipeline import pictures_at_once
from sd_tf.errors import unknown
from sd_tf.images import save_png
from sd_tf.latent.adaptations import LowRank
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.options import LatentOptions
from sd_tf.training.own_folder import remove

TARGETS = ("to_q", "to_k", "to_v", "to_out")
RANK = 8  # default


def choose_what_learns(unet, options: LatentOptions):
    """Sets which weights are trainable, and adds LoRA weights for `finetune="lora"`."""
    for variable in unet.variables:
        variable.trainable = True
    if options.finetune == "cross_attention":
        learn_cross_attention(unet)
    if options.finetune == "lora":
        rank = options.lora_rank or RANK
        targets = options.lora_targets.split(",") if options.lora_targets else TARGETS
        learn_lora(unet, rank, options.lora_alpha or rank, targets)


def learn_cross_attention(unet):
    """Freezes all but the cross-attention layers (Kumari et al. 2023, "Custom Diffusion", figure 3)."""
    for variable in unet.variables:
        variable.trainable = ".attn2." in key_of(variable)


def learn_lora(unet, rank: int, alpha: float, targets=TARGETS):
    """Freezes the network, and adds trainable low-rank matrices to some layers (LoRA, Hu et al. 2021).

    Args:
        unet: a built `UNet`.
        rank: rank of the matrices.
        alpha: their product is scaled by alpha / rank.
        targets: layers, by the last part of their names in diffusers: "to_q", "proj_in", "conv1".

    Raises:
        InputError: no layer has such a name.
    """
    layers = _layers(unet)
    for variable in unet.variables:
        variable.trainable = False
    for target in targets:
        chosen = [layer for module, layer in layers.items() if _last_part(module) == target]
        if not chosen:
            raise unknown("layer for a LoRA", target, sorted(set(map(_last_part, layers))))
        for layer in chosen:
            if not layer.lora_enabled:  # a target may be given twice
                layer.enable_lora(rank, alpha)


def without_lora(unet):
    """The UNet without what `learn_lora` added: itself, or a new one with its kernels."""
    if not any(layer.lora_enabled for layer in _layers(unet).values()):
        return unet
    plain = type(unet)(unet.config, dtype=unet.dtype_policy)
    plain.build()
    values = {key_of(variable): variable for variable in unet.variables if "lora_kernel" not in variable.path}
    for variable in plain.variables:
        variable.assign(values[key_of(variable)].value)
    return plain


def learned_changes(unet) -> dict[str, LowRank]:
    """The trained LoRA of a network: module, as in `Adaptations` -> its change."""
    return {
        f"unet.{module}": _low_rank(layer) for module, layer in _layers(unet).items() if layer.lora_enabled
    }


def _low_rank(layer):
    down, up = np.asarray(layer.lora_kernel_a), np.asarray(layer.lora_kernel_b).T
    down = np.moveaxis(down, (-1, -2), (0, 1))  # (h, w, inputs, rank) -> (rank, inputs, h, w)
    up = up.reshape(*up.shape, *[1] * (down.ndim - 2))
    return LowRank(down, up, layer.lora_alpha / layer.lora_rank)


def draw_prior(model, prompt: str, number: int, seed: int, folder: Path, image_size: int):
    """Writes pictures that a model draws for DreamBooth's class prompt before it is fine-tuned.

    Pictures that an earlier start has written are kept.

    Args:
        model: a `LatentDiffusion`.
        prompt: the class prompt.
        number: how many pictures.
        seed: seed of the first picture.
        folder: for 00000.png and so on.
        image_size: pixels along a side, which sets the batch size.
    """
    folder.mkdir(exist_ok=True)
    files = [folder / f"{i:05}.png" for i in range(number)]
    at_once = pictures_at_once(64, image_size)
    # A model of its own, so that the given one compiles its networks later, with a LoRA in them.
    recommended = model.recommended
    model = LatentDiffusion(
        model.autoencoder, model.unet, model.text_encoder, model.tokenizer, model.schedule
    )
    model.recommended = recommended
    for start in range(sum(file.exists() for file in files), number, at_once):
        part = files[start : start + at_once]
        for file, image in zip(part, model.generate(prompt, len(part), seed=seed + start), strict=True):
            new = folder.with_name(
                f".{folder.name}-{file.name}"
            )  # outside: it is no picture of the prior yet
            remove(new)  # of a killed run, or an untrusted link
            save_png(new, image, {"prompt": prompt})
            new.replace(file)


def _layers(unet):
    """Module -> layer, for all layers that LoRA can adapt."""
    return {
        key_of(layer._kernel).removesuffix(".weight"): layer
        for layer in unet._flatten_layers()
        if hasattr(layer, "enable_lora")
    }


def _last_part(module):
    """The last part of a name that is not a number: "to_out" of "attn1.to_out.0"."""
    return next(part for part in reversed(module.split(".")) if not part.isdigit())
