"""Stable Diffusion at its full size: what loading takes, and whether diffusers and transformers agree.

    python -m benchmarks.full_size --model sd15 --output /tmp/full_size

Writes a pipeline folder of random weights by diffusers and transformers, loads it here and runs every
part on the same inputs in both, each in a process of its own. Prints a table, writes it to
`full_size_sd15.json` in the output folder and removes the pipeline. It takes 12 GB of memory, 5 GB of
disk and some minutes; diffusers, transformers and torch are those of `pip install -e ".[bench]"`.

A load's peak is that of resident memory, above what the process has when all is imported, over the
bytes of the loaded model's weights. Files are read from the operating system's cache.
"""

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

LARGEST_RATIO = 1.6  # of a load's peak to the model's size
LARGEST_DIFFERENCE = 1e-4  # in standard deviations of the reference
PARTS = ("text_encoder", "vae", "unet")
TOKENIZER = Path(__file__).parent.parent / "weights" / "clip-mini"

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
MODELS = {
    "sd15": {
        "unet": {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
        "vae": VAE,
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
            "hidden_act": "quick_gelu",
        },
        "scheduler": {"prediction_type": "epsilon"},
        "parameters": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    },
    "sd21": {
        "unet": {
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "sample_size": 96,
            "use_linear_projection": True,
        },
        "vae": VAE,
        "text_encoder": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "projection_dim": 512,
            "hidden_act": "gelu",
        },
        "scheduler": {"prediction_type": "v_prediction"},
        "parameters": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    },
}

# -- in a process of diffusers and transformers -------------------------------------------------------


def write(model, folder, dtype, max_shard_size):
    """The pipeline, of random weights; norms and biases too, which torch starts at one and zero."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = MODELS[model]
    tokens = {
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
    config = transformers.CLIPTextConfig(**sizes["text_encoder"], **tokens)
    parts = {
        "text_encoder": transformers.CLIPTextModel(config),
        "vae": diffusers.AutoencoderKL(**sizes["vae"]),
        "unet": diffusers.UNet2DConditionModel(**sizes["unet"]),
    }
    for name, part in parts.items():
        count = sum(parameter.numel() for parameter in part.parameters())
        if count != sizes["parameters"][name]:
            raise SystemExit(f"{name} has {count} parameters, {model} has {sizes['parameters'][name]}")
        for parameter in part.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape)
    schedule = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
        **sizes["scheduler"],
    )
    pipeline = diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(TOKENIZER),
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    return {}


def refer(model, folder, outputs):
    """What every part says in diffusers and transformers, in float32."""
    import diffusers
    import torch
    import transformers

    def channels_first(array):
        return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())

    inputs, results = draw_inputs(model), {}
    with torch.no_grad():
        options = {"torch_dtype": torch.float32}
        text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        tower = getattr(text, "text_model", text)
        states = text(torch.from_numpy(inputs["ids"]).long(), output_hidden_states=True)
        results["text tower, last"] = states.last_hidden_state
        results["text tower, penultimate"] = tower.final_layer_norm(states.hidden_states[-2])
        del text, tower, states

        vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", **options).eval()
        moments = vae.encode(channels_first(inputs["images"])).latent_dist
        results["VAE encoder, mean"] = moments.mean.permute(0, 2, 3, 1)
        results["VAE encoder, log variance"] = moments.logvar.permute(0, 2, 3, 1)
        decoded = vae.decode(channels_first(inputs["small_latents"])).sample
        results["VAE decoder"] = decoded.permute(0, 2, 3, 1)
        del vae

        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", **options).eval()
        latents, timesteps, context = (
            channels_first(inputs["latents"]),
            inputs["timesteps"],
            inputs["context"],
        )
        predicted = unet(latents, torch.from_numpy(timesteps), torch.from_numpy(context)).sample
        results["UNet"] = predicted.permute(0, 2, 3, 1)
    np.savez(outputs, **{name: value.numpy() for name, value in results.items()})
    return {}


# -- in processes of ours -----------------------------------------------------------------------------


def load(part, model, folder, outputs):
    """Loads one part, or all, and says what it took; runs one part on the inputs."""
    import keras

    import sd_tf
    from sd_tf.checkpoints import clip as clip_folders
    from sd_tf.latent import folder as folders

    loaders = {
        "text_encoder": clip_folders.load_text_encoder,
        "vae": folders.load_autoencoder,
        "unet": folders.load_unet,
    }
    keras.ops.convert_to_numpy(keras.ops.ones(1))  # the backend is up before anything is measured
    forget_peak()
    before, start = memory("VmRSS"), time.perf_counter()
    loaded = sd_tf.load(folder) if part == "whole" else loaders[part](folder / part)
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    networks = [loaded.text_encoder, loaded.autoencoder, loaded.unet] if part == "whole" else [loaded]
    shapes = [variable.shape for network in networks for variable in network.variables]
    parameters = sum(math.prod(shape) for shape in shapes)
    if part != "whole":
        np.savez(outputs, **run(part, loaded, draw_inputs(model)))
    return {"parameters": parameters, "size": 4 * parameters, "seconds": seconds, "peak": peak}


def run(part, network, inputs):
    """Output's name -> what the part says to the inputs, channels last."""
    if part == "text_encoder":
        return {
            "text tower, last": network(inputs["ids"]).last_hidden_state,
            "text tower, penultimate": network(inputs["ids"], layer=-2).last_hidden_state,
        }
    if part == "vae":
        mean, log_variance = network.moments(inputs["images"])
        scale = network.config.scaling_factor
        return {
            "VAE encoder, mean": mean,
            "VAE encoder, log variance": log_variance,
            "VAE decoder": network.decode(scale * inputs["small_latents"]),
        }
    return {"UNet": network(inputs["latents"], inputs["timesteps"], inputs["context"])}


def memory(field):
    """Bytes of resident memory, "VmRSS" now or "VmHWM" at the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


# -- in both --------------------------------------------------------------------------------------------


def draw_inputs(model):
    """What both sides are given: channels last, the tokens a text of twenty and its end."""
    rng = np.random.default_rng(0)
    ids = np.full((1, 77), 49407, "int32")
    ids[0, :21] = [49406, *rng.integers(300, 49000, 20)]
    width = MODELS[model]["unet"]["cross_attention_dim"]
    return {
        "ids": ids,
        "images": rng.uniform(-1, 1, (1, 128, 128, 3)).astype("float32"),
        "small_latents": rng.standard_normal((1, 16, 16, 4)).astype("float32"),
        "latents": rng.standard_normal((1, 32, 32, 4)).astype("float32"),
        "timesteps": np.array([501]),
        "context": rng.standard_normal((1, 77, width)).astype("float32"),
    }


def step(name, options, *arguments):
    """Runs a function of this file in a process of its own; its result."""
    result = options.output / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.full_size", "--step", name, "--model", options.model]
    command += [
        "--output",
        options.output,
        "--dtype",
        options.dtype,
        "--max-shard-size",
        options.max_shard_size,
    ]
    subprocess.run(list(map(str, command)), check=True, cwd=Path(__file__).parent.parent)
    values = json.loads(result.read_text())
    result.unlink()
    return values


def run_step(options):
    folder, outputs = options.output / "pipeline", options.output / f"{options.step}.npz"
    if options.step == "write":
        values = write(options.model, folder, options.dtype, options.max_shard_size)
    elif options.step == "refer":
        values = refer(options.model, folder, outputs)
    else:
        values = load(options.step, options.model, folder, outputs)
    (options.output / f"{options.step}.json").write_text(json.dumps(values))


def differences(output):
    """Output's name -> the largest difference, in standard deviations of the reference."""
    found = {}
    with np.load(output / "refer.npz") as theirs:
        for part in PARTS:
            with np.load(output / f"{part}.npz") as ours:
                for name in ours:
                    spread = float(theirs[name].std(dtype="float64"))
                    found[name] = float(np.abs(ours[name] - theirs[name]).max()) / spread
    return found


def table(report):
    """The report in words."""
    files = f"{report['dtype']} files, at most {report['max_shard_size']} each"
    lines = [f"{report['model']}, {files}, {report['machine']}", ""]
    lines.append(f"{'load':28}{'parameters':>15}{'size, GB':>11}{'seconds':>10}{'peak, GB':>11}{'ratio':>8}")
    for name, each in report["loads"].items():
        lines.append(
            f"{name:28}{each['parameters']:>15,}{each['size'] / 1e9:>11.2f}{each['seconds']:>10.1f}"
            f"{each['peak'] / 1e9:>11.2f}{each['ratio']:>8.2f}"
        )
    lines += ["", f"{'output':28}{'largest difference, in standard deviations':>47}"]
    lines += [f"{name:28}{difference:>47.1e}" for name, difference in report["differences"].items()]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the table and, meanwhile, the model"
    )
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the files")
    parser.add_argument("--max-shard-size", default="10GB", help="of the files, such as 500MB")
    parser.add_argument("--keep", action="store_true", help="leaves the model's folder")
    parser.add_argument("--step", choices=("write", "refer", "whole", *PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.step:
        run_step(options)
        return
    try:
        for name in ("write", "refer"):
            step(name, options)
        loads = {part: step(part, options) for part in (*PARTS, "whole")}
        report = {
            "model": options.model,
            "dtype": options.dtype,
            "max_shard_size": options.max_shard_size,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "loads": {part: {**each, "ratio": each["peak"] / each["size"]} for part, each in loads.items()},
            "differences": differences(options.output),
        }
    finally:
        for name in ("refer", *PARTS):
            (options.output / f"{name}.npz").unlink(missing_ok=True)
        if not options.keep:
            shutil.rmtree(options.output / "pipeline", ignore_errors=True)
    print(table(report))
    (options.output / f"full_size_{options.model}.json").write_text(json.dumps(report, indent=2) + "\n")
    ratio = max(each["ratio"] for each in report["loads"].values())
    difference = max(report["differences"].values())
    sys.exit(not (ratio < LARGEST_RATIO and difference <= LARGEST_DIFFERENCE))


if __name__ == "__main__":
    main()
