"""sd_tf's own training step, networks, drawing and command lines, as its users run them.

sd_tf is imported before TensorFlow, whose settings it makes, and so where it is used.
"""

import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np


def prepare(workload, variant):
    """(what runs the workload once, None: the arithmetic is counted by torch)."""
    draws = "steps" in workload.sizes
    trains = workload.kind in ("W1", "W3", "W5") or workload.kind == "cascade" and not draws
    if trains and "remat" not in variant.split():  # as `python -m sd_tf.train` does
        from sd_tf.graphs import one_core_for_each_operation, pays_to_divide

        if pays_to_divide(workload.sizes["batch"]):
            one_core_for_each_operation()
    prepare = {
        "peak": _product,
        "W1": _unet_training,
        "W2": _unet,
        "W3": _unet_training,
        "W4": _drawing,
        "W5": _autoencoder_training,
        "W6": _cold_start,
        "W7": _end_to_end,
        "cascade": _cascade_drawing if draws else _cascade_training,
    }[workload.kind]
    return prepare(workload.sizes, variant), None


def _policy(variant):
    return "mixed_bfloat16" if "bfloat16" in variant else "float32"


def _product(sizes, variant):
    import tensorflow as tf

    a, b = (tf.random.normal([sizes["side"]] * 2, dtype=variant.split()[-1]) for _ in range(2))
    product = tf.function(tf.matmul)
    return lambda: product(a, b).numpy()


# -- training -------------------------------------------------------------------------------------------


def _training(stage, batch, variant):
    """Steps of the `Trainer` on one batch, over and over; with `--remat` in variants that say so."""
    import tensorflow as tf

    from sd_tf.training.loop import Budget, Trainer

    trainer = Trainer(
        stage,
        tf.distribute.get_strategy(),
        Budget(None, 1),
        tempfile.mkdtemp(),
        _policy(variant),
        1e9,
        remat="remat" in variant.split(),
    )
    batch = {name: tf.constant(value) for name, value in batch.items()}
    return lambda: float(trainer.step(batch)["loss"])


def _stage_config(sizes):
    from sd_tf.training.options import StageConfig

    return StageConfig(batch_size=sizes["batch"], learning_rate=1e-4)


def _stage(sizes, network, loss):
    from sd_tf.training.stage import SinglePlayerStage

    stage = SinglePlayerStage(_stage_config(sizes), network)
    stage.name, stage.loss = "benchmark", loss
    return stage


def make_unet(sizes, variant):
    """The network of a workload's sizes, of random weights."""
    from sd_tf.latent.config import UNetConfig
    from sd_tf.latent.unet import UNet

    unet = UNet(UNetConfig(**sizes["unet"]), dtype=_policy(variant))
    unet.build()
    return unet


def unet_inputs(sizes):
    """Latents, timesteps and context."""
    config, side = sizes["unet"], sizes["latents"]
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((sizes["batch"], side, side, 4)).astype("float32"),
        rng.integers(0, 1000, sizes["batch"]).astype("int32"),
        rng.standard_normal((sizes["batch"], sizes["tokens"], config["cross_attention_dim"])).astype(
            "float32"
        ),
    )


def _unet_training(sizes, variant):
    from sd_tf.diffusion.losses import diffusion_loss
    from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig

    network, schedule = make_unet(sizes, variant), NoiseSchedule(ScheduleConfig())
    latents, timesteps, context = unet_inputs(sizes)

    def loss(batch):
        parts = (batch[name] for name in ("latents", "context", "timesteps", "noise"))
        return {"loss": diffusion_loss(network, *parts, schedule)}

    batch = {"latents": latents, "noise": latents[::-1], "context": context, "timesteps": timesteps}
    return _training(_stage(sizes, network, loss), batch, variant)


def _autoencoder_training(sizes, variant):
    from sd_tf.checkpoints.sources import resolve
    from sd_tf.latent.folder import load_autoencoder
    from sd_tf.latent.stages import AutoencoderStage

    network = load_autoencoder(resolve("fashion-mnist") / "vae", _policy(variant))
    rng, side = np.random.default_rng(0), sizes["pictures"]
    images = rng.uniform(-1, 1, (sizes["batch"], side, side, 3)).astype("float32")
    noise = rng.standard_normal((sizes["batch"], side // 4, side // 4, 4)).astype("float32")
    stage = AutoencoderStage(_stage_config(sizes), network, dataset=None, seed=0)
    return _training(stage, {"images": images, "noise": noise}, variant)


# -- cascades -------------------------------------------------------------------------------------------


def _cascade_stage(sizes, variant):
    """A `PixelStage` of the workload's preset, of random weights, and its preset."""
    from benchmarks import cascades
    from sd_tf.cascade.presets import preset_named
    from sd_tf.cascade.stage import PixelStage
    from sd_tf.cascade.unet import PixelUNet
    from sd_tf.diffusion.schedules import NoiseSchedule

    unet = PixelUNet(cascades.config(sizes, variant), dtype=_policy(variant))
    unet.build()
    preset = preset_named(sizes["preset"]).stages[sizes["stage"]]
    noising = NoiseSchedule(preset.noising) if preset.noising is not None else None
    return PixelStage(unet, NoiseSchedule(preset.schedule), noising), preset


def _cascade_training(sizes, variant):
    """A step of a stage's own loss on real pictures."""
    import dataclasses

    from benchmarks import cascades
    from sd_tf.cascade.stages import BaseStage, SuperResolutionStage

    stage, preset = _cascade_stage(sizes, variant)
    config = dataclasses.replace(preset.training, batch_size=sizes["batch"])
    pictures = cascades.pictures(64 * (1 + sizes["stage"]), sizes["batch"])
    context = cascades.text_states(sizes)
    texts = types.SimpleNamespace(states=np.zeros((1, *context.shape[1:]), np.float32), seconds=0.0)
    shared = (config, "benchmark", stage, None, texts, cascades.DROPPED, 0, None)
    learned = SuperResolutionStage(*shared, small=(64, 64)) if sizes["stage"] else BaseStage(*shared)
    indices = np.arange(sizes["batch"])
    parts = learned.pictures(2 * pictures - 1, indices, 0)
    batch = {**parts, "context": context, **learned.drawn(indices, 0, parts["images"].shape[1:])}
    return _training(learned, batch, variant)


def _cascade_drawing(sizes, variant):
    """Guided steps of the best sampler, as `CascadedDiffusion.generate` draws a stage."""
    from benchmarks import cascades
    from sd_tf.cascade.drawing import draw_stage
    from sd_tf.diffusion.conditions import Condition
    from sd_tf.generation.request import Request

    stage, preset = _cascade_stage(sizes, variant)
    request = Request(prompt_embeds=cascades.text_states(sizes), batch_size=sizes["batch"])
    asked = Condition(request.prompt_embeds).split(sizes["batch"])
    free = Condition(np.zeros_like(request.prompt_embeds)).split(sizes["batch"])
    settings = preset.recommended.replaced(steps=sizes["steps"], guidance_scale=sizes["guidance_scale"])
    pairs = list(zip(free, asked, strict=True))
    return lambda: draw_stage(
        stage, 0, request, pairs, settings, stage.thresholding, stage.image_size, progress=False
    )


# -- drawing --------------------------------------------------------------------------------------------


def _engine(variant):
    return "openvino" if "openvino" in variant else "tensorflow"


def _unet(sizes, variant):
    from sd_tf.generation.engines import read_conversion, write_conversion
    from sd_tf.graphs import compiled

    network, inputs = make_unet(sizes, variant), unet_inputs(sizes)
    if _engine(variant) == "tensorflow":
        call = compiled(network)
    else:
        file = Path(tempfile.mkdtemp()) / "unet.xml"
        arguments = [((None, *array.shape[1:]), str(array.dtype)) for array in inputs]
        write_conversion(network, network, arguments, file)
        call = read_conversion(file)
    return lambda: np.asarray(call(*inputs))


def _drawing(sizes, variant):
    import sd_tf

    model = sd_tf.load("fashion-mnist", dtype=_policy(variant))
    return lambda: model.generate(
        "a red dress",
        num_images=sizes["pictures"],
        steps=sizes["steps"],
        guidance_scale=sizes["guidance_scale"],
        engine=_engine(variant),
        progress=False,
    )


def _cold_start(sizes, variant):
    folder = tempfile.mkdtemp()
    command = [sys.executable, "-m", "sd_tf.generate", "a red dress", "--output", folder]
    command += ["--engine", _engine(variant)]
    return lambda: subprocess.run(command, check=True, capture_output=True)


# -- end to end -----------------------------------------------------------------------------------------


def _end_to_end(sizes, variant):
    words, side = variant.split(), "64" if "64x64" in variant else "32"
    batch = words[words.index("batch") + 1] if "batch" in words else "64"
    command = [sys.executable, "-m", "sd_tf.train", "--dataset", "garments", "--text-encoder", "clip-mini"]
    command += ["--max-steps", str(sizes["steps"]), "--batch-size", batch, "--image-size", side]
    if "replicas" in words:
        command += ["--strategy", "mirrored", "--replicas", "2"]

    def run():
        subprocess.run([*command, "--output", tempfile.mkdtemp()], check=True, capture_output=True)

    return run
