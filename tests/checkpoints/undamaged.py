"""Checkpoints of every kind that is read, as small as they can be, for others to damage."""

import functools
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

import sd_tf
from sd_tf.checkpoints import clip as clip_folders
from sd_tf.checkpoints import tokenizers
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.latent import folder as folders
from sd_tf.latent.autoencoder import AutoencoderKL
from sd_tf.latent.config import AutoencoderConfig, UNetConfig
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.unet import UNet
from sd_tf.text.clip import CLIPModel, CLIPTextModel
from sd_tf.text.config import CLIPTextConfig, CLIPVisionConfig
from sd_tf.text.tokenizer import Tokenizer

POSITIONS = 8
SINGLE = "model.safetensors"


class Checkpoint(NamedTuple):
    """How one is written into a folder and loaded from it; `share` of the damaged ones are of its kind."""

    write: Callable
    load: Callable
    share: int


@functools.cache
def tokenizer():
    return Tokenizer.learn(["a red dress", "a blue bag", "a dress"], 520, max_length=POSITIONS)


@functools.cache
def unet(width=4, groups=2, linear=False):
    config = UNetConfig(
        sample_size=4,
        block_out_channels=(width,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=2,
        cross_attention_dim=2 * width,
        norm_num_groups=groups,
        use_linear_projection=linear,
    )
    return built(UNet(config))


@functools.cache
def autoencoder(width=4, groups=2):
    config = AutoencoderConfig(
        block_out_channels=(width,), layers_per_block=1, norm_num_groups=groups, sample_size=4
    )
    return built(AutoencoderKL(config))


def text_config(width=8):
    return CLIPTextConfig(
        vocab_size=tokenizer().vocab_size,
        hidden_size=width,
        intermediate_size=12,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer().bos_token_id,
        eos_token_id=tokenizer().eos_token_id,
        pad_token_id=tokenizer().pad_token_id,
    )


@functools.cache
def text_tower(width=8):
    return built(CLIPTextModel(text_config(width)))


def built(model):
    model.build()
    return model


def write_clip(folder):
    vision = CLIPVisionConfig(
        hidden_size=6,
        intermediate_size=8,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    clip_folders.save_clip(built(CLIPModel(text_config(), vision)), tokenizer(), folder)


def write_model(folder):
    schedule = NoiseSchedule(ScheduleConfig())
    LatentDiffusion(autoencoder(), unet(), text_tower(), tokenizer(), schedule).save(folder)


# -- single files of one level, in CompVis' layout, which takes groups and heads for granted -------------

ORIGINAL = {  # in this order
    "unet.": "model.diffusion_model.",
    "vae.": "first_stage_model.",
    "text.": "cond_stage_model.transformer.",
    "_model.time_embedding.linear_1": "_model.time_embed.0",
    "_model.time_embedding.linear_2": "_model.time_embed.2",
    "diffusion_model.conv_in": "diffusion_model.input_blocks.0.0",
    "diffusion_model.conv_norm_out": "diffusion_model.out.0",
    "diffusion_model.conv_out": "diffusion_model.out.2",
    "diffusion_model.down_blocks.0.resnets.0": "diffusion_model.input_blocks.1.0",
    "diffusion_model.mid_block.resnets.0": "diffusion_model.middle_block.0",
    "diffusion_model.mid_block.attentions.0": "diffusion_model.middle_block.1",
    "diffusion_model.mid_block.resnets.1": "diffusion_model.middle_block.2",
    "diffusion_model.up_blocks.0.resnets.0": "diffusion_model.output_blocks.0.0",
    "diffusion_model.up_blocks.0.resnets.1": "diffusion_model.output_blocks.1.0",
    "coder.down_blocks.0.resnets.": "coder.down.0.block.",
    "coder.up_blocks.0.resnets.": "coder.up.0.block.",
    "coder.mid_block.resnets.0": "coder.mid.block_1",
    "coder.mid_block.resnets.1": "coder.mid.block_2",
    "coder.mid_block.attentions.0.group_norm": "coder.mid.attn_1.norm",
    "coder.mid_block.attentions.0.to_out.0": "coder.mid.attn_1.proj_out",
    "coder.mid_block.attentions.0.to_": "coder.mid.attn_1.",
    "coder.conv_norm_out": "coder.norm_out",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write_single_file(folder, second):
    """One of Stable Diffusion 1.x or, `second`, 2.x, with a tokenizer beside it."""
    folders.save_unet(unet(64, 32, second), folder / "unet")
    folders.save_autoencoder(autoencoder(32, 32), folder / "vae")
    clip_folders.save_text_encoder(text_tower(128), folder / "text")
    tensors = {}
    for part in ("unet", "vae", "text"):
        (file,) = (folder / part).glob("*.safetensors")
        for key, value in load_file(file).items():
            pixelwise = part == "vae" and ".attentions.0.to_" in key and value.ndim == 2
            tensors[original_key(f"{part}.{key}")] = value[:, :, None, None] if pixelwise else value
        shutil.rmtree(folder / part)
    tensors = with_open_clip(tensors) if second else tensors
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / SINGLE)
    tokenizer().save(folder / "tokenizer")


def original_key(key):
    for ours, theirs in ORIGINAL.items():
        key = key.replace(ours, theirs)
    if "diffusion_model" not in key:
        return key.replace("conv_shortcut", "nin_shortcut")
    if "middle_block.1" not in key:
        for ours, theirs in RESNET.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
    return key


def with_open_clip(tensors):
    """A file's tensors with the text tower as OpenCLIP writes it."""
    ours = "cond_stage_model.transformer."
    tower = {key.removeprefix(ours): tensors[key] for key in tensors if key.startswith(ours)}
    others = {key: value for key, value in tensors.items() if not key.startswith(ours)}
    return others | {"cond_stage_model.model." + key: value for key, value in open_clip(tower, 1).items()}


def open_clip(state, layers):
    """transformers' text tower as OpenCLIP writes it, with the last layer that nobody reads."""
    text = "text_model."
    tensors = {
        "token_embedding.weight": state[text + "embeddings.token_embedding.weight"],
        "positional_embedding": state[text + "embeddings.position_embedding.weight"],
        "ln_final.weight": state[text + "final_layer_norm.weight"],
        "ln_final.bias": state[text + "final_layer_norm.bias"],
    }
    for i in range(layers + 1):
        ours, theirs = f"{text}encoder.layers.{min(i, layers - 1)}.", f"transformer.resblocks.{i}."
        for last in ("weight", "bias"):
            projections = [state[f"{ours}self_attn.{name}_proj.{last}"] for name in "qkv"]
            tensors[f"{theirs}attn.in_proj_{last}"] = np.concatenate(projections)
            for name, other in OPEN_CLIP.items():
                tensors[f"{theirs}{other}.{last}"] = state[f"{ours}{name}.{last}"]
    return tensors


def load_single_file(folder):
    file = next(folder.glob("model.*"), folder / SINGLE)
    return sd_tf.load(file, tokenizer=folder / "tokenizer")


# -- all of them ------------------------------------------------------------------------------------------


def write_unet(folder):
    folders.save_unet(unet(), folder)


def write_shards(folder):
    folders.save_unet(unet(), folder, max_shard_size=4000)


def write_halves(folder):
    folders.save_autoencoder(autoencoder(), folder, "float16")


def write_text_tower(folder):
    clip_folders.save_text_encoder(text_tower(), folder)


def load_tokenizer(folder):
    return tokenizers.load_tokenizer(folder, POSITIONS)


CHECKPOINTS = {
    "UNet": Checkpoint(write_unet, folders.load_unet, 3),
    "shards": Checkpoint(write_shards, folders.load_unet, 3),
    "halves": Checkpoint(write_halves, folders.load_autoencoder, 3),
    "text tower": Checkpoint(write_text_tower, clip_folders.load_text_encoder, 4),
    "CLIP": Checkpoint(write_clip, clip_folders.load_text_encoder, 3),
    "tokenizer": Checkpoint(lambda folder: tokenizer().save(folder), load_tokenizer, 3),
    "model": Checkpoint(write_model, sd_tf.load, 3),
    "file of 1.x": Checkpoint(lambda folder: write_single_file(folder, False), load_single_file, 1),
    "file of 2.x": Checkpoint(lambda folder: write_single_file(folder, True), load_single_file, 1),
}


def use(model):
    """Runs what was loaded: damage may show only then."""
    if isinstance(model, LatentDiffusion):
        for part in (model.tokenizer, model.text_encoder, model.unet, model.autoencoder):
            use(part)
        model.schedule.inference_timesteps(1)
    elif isinstance(model, Tokenizer):
        model(["a red dress", "", "é\n!"])
    elif isinstance(model, UNet):
        context = np.zeros((2, 3, model.config.cross_attention_dim), "float32")
        model(np.zeros((2, 4, 4, model.config.in_channels), "float32"), np.array([0, 5]), context)
    elif isinstance(model, AutoencoderKL):
        model(np.zeros((1, 4, 4, model.config.in_channels), "float32"))
    else:
        model(np.zeros((2, 3), "int32"))
