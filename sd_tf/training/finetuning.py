"""Chooses the weights of a UNet to fine-tune: all, those that attend to the text, or LoRA."""

import dataclasses

import numpy as np

from sd_tf.checkpoints.names import key_of
from sd_tf.errors import InputError, shown, unknown
from sd_tf.lora.adaptations import LowRank
from sd_tf.training.finetuning_options import FineTuningOptions, options_of_tuning

RANK = 8  # default


def choose_what_learns(unet, options: FineTuningOptions, attention: str, targets):
    """Sets which weights are trainable, and adds LoRA weights for `finetune="lora"`.

    Args:
        unet: a built UNet.
        options: what of it learns.
        attention: what the keys of the layers that attend to the text have in them, such as ".attn2.".
        targets: the layers of a LoRA, see `learn_lora`.
    """
    for variable in unet.variables:
        variable.trainable = True
    if options.finetune == "cross_attention":
        learn_only(unet, attention)
    if options.finetune == "lora":
        rank = options.lora_rank or RANK
        learn_lora(unet, rank, options.lora_alpha or rank, targets)


def learn_only(unet, part: str):
    """Freezes all weights but those with a part in their keys, such as the cross-attention's (Kumari et al.
    2023, "Custom Diffusion", figure 3)."""
    for variable in unet.variables:
        variable.trainable = part in key_of(variable)


def learn_lora(unet, rank: int, alpha: float, targets):
    """Freezes the network, and adds trainable low-rank matrices to some layers (LoRA, Hu et al. 2021).

    Args:
        unet: a built UNet.
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
            raise unknown("layer for a LoRA", target, layers_for_lora(unet))
        for layer in chosen:
            if not layer.lora_enabled:  # a target may be given twice
                layer.enable_lora(rank, alpha)


def layers_for_lora(unet) -> list[str]:
    """The targets that `learn_lora` can have in a built UNet, sorted."""
    return sorted(set(map(_last_part, _layers(unet))))


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


def check_fine_tuning(model, own: FineTuningOptions, run, learned_here: bool):
    """Raises `InputError` if a model cannot be fine-tuned so.

    Args:
        model: an `Adaptable`.
        own: how it is fine-tuned.
        run: the `Run`.
        learned_here: whether a run in the same folder has trained the model, whose LoRA may be loaded.
    """
    options = run.options
    if options.snapshots and own.finetune in ("lora", "textual_inversion"):
        raise InputError(
            f"{options.said('snapshots')} saves whole UNets: leave it out with {own.said('finetune')} "
            f"{own.finetune}"
        )
    if options.dry_run and own.finetune == "textual_inversion":
        raise InputError(
            f"{options.said('dry_run')} cannot estimate {own.said('finetune')} {own.finetune}, which "
            f"takes less memory than {own.said('finetune')} unet"
        )
    known = {run.folder.name} if learned_here else set()
    if model.has_adaptations and set(model.adaptations.weights) - known:
        raise InputError(
            "the model has LoRAs: merge them with model.adaptations.fuse(), or remove them, before it is "
            "trained further"
        )


def recipe_for(tune, recipe_of):
    """The `recipe_of(model, options, folder)` that `sd_tf.training.fit.fit` takes.

    Args:
        tune: how a trained model is fine-tuned, an argument of a model's `fit`.
        recipe_of: that of the family.
    """
    tuning = options_of_tuning(tune)

    def of_fit(model, options, folder):
        for name in tuning:
            if name in options.given:
                raise InputError(f"{options.named_value(name)} in options, beside tune: leave one out")
        if options.init_from is not None:
            raise InputError(
                f"{options.named_value('init_from')}, but the model is there already: leave it out, or take "
                "sd_tf.load in the place of the model"
            )
        fields = {field.name for field in dataclasses.fields(options)}
        if tuning.get("lora_layout", "diffusers") != "diffusers" and "lora_layout" not in fields:
            raise InputError(
                f"layout is {shown(tuning['lora_layout'])}, which is not for this kind of model, "
                f"{type(model).__name__}: leave it out"
            )
        options = dataclasses.replace(
            options, **{name: value for name, value in tuning.items() if name in fields}
        )
        is_new = model.provenance.trains_from_random_weights(folder)
        for name in ("finetune", "prior_prompt"):
            if getattr(options, name) is not None and is_new:
                raise InputError(
                    f"{options.named_value(name)}, but the model has learned nothing yet: train it first, or "
                    "take one of sd_tf.load"
                )
        return recipe_of(model, options, folder)

    return of_fit


def _low_rank(layer):
    down, up = np.asarray(layer.lora_kernel_a), np.asarray(layer.lora_kernel_b).T
    down = np.moveaxis(down, (-1, -2), (0, 1))  # (h, w, inputs, rank) -> (rank, inputs, h, w)
    up = up.reshape(*up.shape, *[1] * (down.ndim - 2))
    return LowRank(down, up, layer.lora_alpha / layer.lora_rank)


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
