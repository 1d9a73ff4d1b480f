"""`--dry-run`: a run's configuration, parameters, steps and estimated memory, without training.

Nothing is written, and no network is allocated: each stage's step is traced as a graph, whose tensors have
shapes but no values, and the memory is what these would take.
"""

import dataclasses
import re
import resource
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import tensorflow as tf

from sd_tf.nn.fused import fusing
from sd_tf.nn.remat import rematerialising
from sd_tf.training.optimizer import BUCKET

VALUES_PER_PARAMETER = 5  # the weight, two moments, its moving average, its gradient
OVERHEAD = 350 * 2**20  # bytes of graphs, kernels and prefetched data, measured with the presets
UPDATE_VECTORS = 5  # temporary vectors of a bucket's size during its update
# Operations whose output shares the memory of their input.
SAME_MEMORY = ("Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "StopGradient", "PreventGradient")
# Inputs and variables, which are counted separately.
NO_MEMORY = ("Placeholder", "VarHandleOp", "ReadVariableOp", "Const")


def describe(run) -> list[str]:
    """Lines for a `Run` made with `dry_run`: its options, then each of its stages."""
    resolved = {}
    for options in (run.data.options, run.options, *run.recipe.options):
        resolved |= dataclasses.asdict(options)
    resolved |= {"output": run.folder, "cache_dir": run.cache_folder} | run.recipe.described()
    lines = ["configuration"]
    lines += [f"  {name:<18} {value}" for name, value in resolved.items() if value is not None]
    for planned in run.stages:
        lines += _describe_stage(run, planned)
    return lines


def _describe_stage(run, planned):
    options = run.options
    started = peak_memory() + OVERHEAD
    replicas = options.workers or options.replicas or 1
    stage, frozen, _ = _outline(run, planned)
    players = stage.players.values()
    learned = sum(_count(player.network.trainable_variables) for player in players)
    part = stage.batch_size // replicas // (options.accumulate if stage.divisible else 1)
    activations = max(_activations(run, planned, name, part) for name in stage.players)
    state = 4 * (VALUES_PER_PARAMETER * learned + UPDATE_VECTORS * min(learned, BUCKET) + frozen)
    budget = run.budget(planned)
    length = f"{budget.steps:,} steps" if budget.steps else f"{budget.seconds / 60:.1f} minutes"
    return [
        f"stage {planned.name}",
        f"  {length}, each of {stage.batch_size} examples, on {replicas} "
        f"replica{'s' if replicas > 1 else ''}",
        f"  {learned:,} trainable parameters, {frozen:,} frozen",
        *(
            _describe_optimizer(name, player.optimizer, len(players))
            for name, player in stage.players.items()
        ),
        f"  memory of a replica: {_size(started + state + activations)} (TensorFlow {_size(started)}, "
        f"weights and optimizer {_size(state)}, activations {_size(activations)})",
    ]


def _describe_optimizer(name, config, players):
    return (
        f"  {f'{name}: ' if players > 1 else ''}{config.optimizer}, learning rate {config.learning_rate:g}, "
        f"{config.lr_schedule}, after {config.warmup_steps} steps of warm-up; weight decay "
        f"{config.weight_decay:g}, gradients clipped to {config.gradient_clip:g}, average over "
        f"{config.ema_decay:g}"
    )


def _count(variables):
    return sum(variable.shape.num_elements() for variable in variables)


def peak_memory() -> int:
    """The peak resident memory of this process in bytes, not of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux `ru_maxrss` starts at the parent's value, such as a notebook's
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _outline(run, planned):
    """A stage, the number of its frozen weights, and the graph that its networks are in."""
    graph = tf.Graph()
    with graph.as_default():
        return *planned.outline(run), graph


def _activations(run, planned, player, batch_size):
    """Peak bytes of tensors in a player's forward and backward pass of `batch_size` examples."""
    stage, _, graph = _outline(run, planned)
    spec, learned = stage.batches(0).element_spec, stage.players[player].network.trainable_variables
    averages = {name: each.network for name, each in stage.players.items()}
    with graph.as_default():
        batch = {
            name: tf.compat.v1.placeholder(each.dtype, [batch_size, *each.shape[1:]])
            for name, each in spec.items()
        }
        with fusing(), rematerialising(learned, run.options.remat):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(stage.losses(batch, player, averages)["loss"])
            tape.gradient(loss, learned)
    return _peak_bytes(graph.get_operations())


def _peak_bytes(operations):
    """Peak bytes if operations run in this order and each tensor is freed after its last use."""
    owner, size, last_use = {}, Counter(), {}
    for i, operation in enumerate(operations):
        for tensor in operation.inputs:
            last_use[owner[tensor.ref()]] = i
        for k, tensor in enumerate(operation.outputs):
            if operation.type in SAME_MEMORY:
                owner[tensor.ref()] = owner[operation.inputs[k].ref()]
                continue
            owner[tensor.ref()] = (i, k)
            last_use[i, k] = i
            if operation.type not in NO_MEMORY and tensor.dtype != tf.resource:
                size[i, k] = (tensor.shape.num_elements() or 0) * tensor.dtype.size
    change = np.zeros(len(operations) + 1)
    for (i, k), end in last_use.items():
        change[i] += size[i, k]
        change[end + 1] -= size[i, k]
    return int(change.cumsum().max())


def _size(number):
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
