"""What a run would be, before it is one: its configuration, parameters, memory and steps.

Nothing is written, and no network is allocated: each stage's step is laid out as a graph, in which
tensors have shapes only, and the memory is what these would take.
"""

import dataclasses
import re
import resource
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from sd_tf.checkpoints.clip import text_config
from sd_tf.latent.autoencoder import AutoencoderKL
from sd_tf.latent.finetuning import choose_what_learns
from sd_tf.latent.model import LatentDiffusion
from sd_tf.nn.fused import fusing
from sd_tf.nn.remat import rematerialising
from sd_tf.text.clip import CLIPTextModel
from sd_tf.training.optimizer import BUCKET
from sd_tf.training.options import StageConfig

STATE = 5  # numbers kept for each parameter: itself, two moments, its average, its gradient
RUNNING = 350 * 2**20  # bytes that graphs, kernels and data on their way take, as measured of the presets
PASSING = 5  # vectors of a bucket's size while it is updated
# What these put out is what they take in.
SAME_MEMORY = ("Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "StopGradient", "PreventGradient")
# Of inputs and variables, which are counted apart.
NO_MEMORY = ("Placeholder", "VarHandleOp", "ReadVariableOp", "Const")


def describe(run) -> list[str]:
    """Lines for a `Run` made with `dry_run`: its configuration, then each of its stages."""
    config = run.config
    resolved = dataclasses.asdict(config) | {
        "output": run.folder,
        "preset": run.preset_name,
        "text_encoder": run.clip_folder
        or ("the model's" if config.init_from else "one that this run trains"),
        "cache_dir": run.cache_folder,
        "prediction_type": run.schedule.config.prediction_type,
        "beta_schedule": run.schedule.config.beta_schedule,
    }
    of_stages = [field.name for field in dataclasses.fields(StageConfig)]
    lines = ["configuration"]
    for name, value in resolved.items():
        if value is not None and name not in of_stages:
            lines.append(f"  {name:<18} {value}")
    for name in run.stages:
        lines += _describe_stage(run, name)
    return lines


def _describe_stage(run, name):
    config = run.config
    started = peak_memory() + RUNNING
    replicas = config.workers or config.replicas or 1
    graph = tf.Graph()
    with graph.as_default():
        stage, frozen = _stage(run, name)
    parameters = sum(variable.shape.num_elements() for variable in stage.network.trainable_variables)
    part = stage.config.batch_size // replicas // (config.accumulate if stage.divisible else 1)
    activations = _activations(graph, stage, part, config.remat)
    state = 4 * (STATE * parameters + PASSING * min(parameters, BUCKET) + frozen)
    budget, settings = run.budget(stage.config), stage.config
    length = f"{budget.steps:,} steps" if budget.steps else f"{budget.seconds / 60:.1f} minutes"
    return [
        f"stage {name}",
        f"  {length}, each of {settings.batch_size} examples, on {replicas} "
        f"replica{'s' if replicas > 1 else ''}",
        f"  {parameters:,} parameters, and {frozen:,} that are frozen",
        f"  {settings.optimizer}, learning rate {settings.learning_rate:g}, {settings.lr_schedule}, after "
        f"{settings.warmup_steps} steps of warm-up; weight decay {settings.weight_decay:g}, gradients "
        f"clipped to {settings.gradient_clip:g}, average over {settings.ema_decay:g}",
        f"  memory of a replica: {_size(started + state + activations)} (TensorFlow {_size(started)}, "
        f"weights and optimizer {_size(state)}, activations {_size(activations)})",
    ]


def peak_memory() -> int:
    """Bytes that this process has had resident at most; of the one that started it, nothing."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux `ru_maxrss` begins with the parent's: a notebook's, with its pictures
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _stage(run, name):
    """A stage, with its networks in the default graph, and how many weights it holds that are not trained."""
    if name == "clip":
        return run.clip_stage(), 0
    if name == "autoencoder":
        return run.autoencoder_stage(), 0
    autoencoder = AutoencoderKL(run.preset.autoencoder)
    autoencoder.build()
    if run.clip_folder is None and not run.config.init_from:
        text_encoder = run.clip_stage().network.text_model
    else:
        text_encoder = CLIPTextModel(text_config(run.clip_folder) if run.clip_folder else run.preset.text)
        text_encoder.build()
    tower = text_encoder.config
    tokenizer = SimpleNamespace(
        max_length=tower.max_position_embeddings, vocab_size=tower.vocab_size, check_fits=lambda tower: None
    )
    unet = run.unet(text_encoder.config.hidden_size)
    choose_what_learns(unet, run.config)
    model = LatentDiffusion(autoencoder, unet, text_encoder, tokenizer, run.schedule)
    frozen = [*autoencoder.variables, *text_encoder.variables, *unet.non_trainable_variables]
    return run.diffusion_stage(model, _Example(model)), sum(v.shape.num_elements() for v in frozen)


class _Example:
    """A `LatentCache` of one picture, for its shapes."""

    def __init__(self, model):
        height, width = model.unet.config.latent_size
        tower = model.text_encoder.config
        self.mean = self.std = np.zeros((1, height, width, model.unet.config.in_channels), np.float16)
        self.contexts = np.zeros((2, tower.max_position_embeddings, tower.hidden_size), np.float16)
        self.caption = np.zeros(1, np.int32)

    def __len__(self):
        return 1


def _activations(graph, stage, batch_size, remat):
    """Most bytes of tensors at once in the forward and the backward pass of so many examples."""
    spec = stage.batches(0).element_spec
    with graph.as_default():
        batch = {
            name: tf.compat.v1.placeholder(each.dtype, [batch_size, *each.shape[1:]])
            for name, each in spec.items()
        }
        learned = stage.network.trainable_variables
        with fusing(), rematerialising(learned, remat):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(stage.loss(batch)["loss"])
            tape.gradient(loss, learned)
    return _most_at_once(graph.get_operations())


def _most_at_once(operations):
    """Bytes, where operations run in this order and each tensor goes when nothing needs it any more."""
    owner, size, last = {}, Counter(), {}
    for i, operation in enumerate(operations):
        for tensor in operation.inputs:
            last[owner[tensor.ref()]] = i
        for k, tensor in enumerate(operation.outputs):
            if operation.type in SAME_MEMORY:
                owner[tensor.ref()] = owner[operation.inputs[k].ref()]
                continue
            owner[tensor.ref()] = (i, k)
            last[i, k] = i
            if operation.type not in NO_MEMORY and tensor.dtype != tf.resource:
                size[i, k] = (tensor.shape.num_elements() or 0) * tensor.dtype.size
    change = np.zeros(len(operations) + 1)
    for (i, k), end in last.items():
        change[i] += size[i, k]
        change[end + 1] -= size[i, k]
    return int(change.cumsum().max())


def _size(number):
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
