"""What a user of diffusers trains in so many minutes on two cores, and its pictures.

    python -m benchmarks.peers.trained_diffusers --output DIR --minutes 28
    python -m benchmarks.peers.trained_diffusers --output DIR --samples 5000 --guidance-scale 1 1.5 2 2.5

An `AutoencoderKL` of 0.95 M parameters for two sevenths of the time, latents of every picture once, then a
`UNet2DConditionModel` of 3.5 M with learned caption tokens (a garment's and a colour's) on them. The second
command writes `drawn-<scale>-<samples>-<tinted samples>.npz` for each guidance scale, of the three fields of
`sd_tf.evaluation.scores.Drawn`.
"""

import argparse
import math
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch.nn import functional

from sd_tf.data.captions import CLASS_NAMES, PALETTE
from sd_tf.data.fashion_mnist import FashionMNIST

AUTOENCODER_SHARE = 8 / 28
BATCH, UNET_BATCH = 64, 128
LEARNING_RATE, WARMUP = 1e-3, 100
KL_WEIGHT, EMA_DECAY, DROPPED = 1e-5, 0.999, 0.1
TOKEN_WIDTH = 64
COLOURS = 1 + len(PALETTE)  # of a garment: none is the first
SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "clip_sample": False,
}


class Captions(torch.nn.Module):
    """A token for the garment and one for the colour, or for there being none."""

    def __init__(self):
        super().__init__()
        self.garments = torch.nn.Embedding(len(CLASS_NAMES) + 1, TOKEN_WIDTH)
        self.colours = torch.nn.Embedding(len(PALETTE) + 2, TOKEN_WIDTH)

    def forward(self, groups, dropped):
        """Groups as `FashionMNIST` has them, int (n,), and which are dropped, bool (n,) -> (n, 2, width)."""
        garments = torch.where(dropped, len(CLASS_NAMES), groups // COLOURS)
        colours = torch.where(dropped, COLOURS, groups % COLOURS)
        return torch.stack([self.garments(garments), self.colours(colours)], dim=1)


class Clock:
    """Seconds of a budget, the learning rate that decays over it, and lines that say how it goes."""

    def __init__(self, name, seconds, optimizer):
        self.name, self.seconds, self.optimizer = name, seconds, optimizer
        self.began, self.steps, self.said = time.monotonic(), 0, 0.0

    def running(self):
        elapsed = time.monotonic() - self.began
        rate = (
            min(1.0, (self.steps + 1) / WARMUP)
            * 0.5
            * (1 + math.cos(math.pi * min(1, elapsed / self.seconds)))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        self.steps += 1
        return elapsed < self.seconds

    def say(self, loss):
        elapsed = time.monotonic() - self.began
        if elapsed - self.said > 30:
            self.said = elapsed
            print(
                f"{self.name}: {elapsed:.0f} of {self.seconds:.0f} s, step {self.steps}, {loss:.4f}",
                flush=True,
            )


def to_torch(images):
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_uint8(images):
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def train_autoencoder(dataset, seconds):
    """L1, squared error and a little of the KL divergence."""
    autoencoder = AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=LEARNING_RATE)
    clock, generator = Clock("autoencoder", seconds, optimizer), np.random.default_rng(0)
    epoch = 0
    while True:
        order = generator.permutation(len(dataset))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            if not clock.running():
                return autoencoder.eval()
            images = to_torch(dataset.examples(order[start : start + BATCH], epoch).images)
            posterior = autoencoder.encode(images).latent_dist
            rebuilt = autoencoder.decode(posterior.sample()).sample
            loss = functional.l1_loss(rebuilt, images) + functional.mse_loss(rebuilt, images)
            loss = loss + KL_WEIGHT * posterior.kl().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
            optimizer.step()
            clock.say(float(loss))
        epoch += 1


@torch.no_grad()
def encode(autoencoder, dataset, batch=256):
    """Mean and deviation of every picture's latents, one tint each, and their groups."""
    means, deviations, groups = [], [], []
    for start in range(0, len(dataset), batch):
        examples = dataset.examples(np.arange(start, min(start + batch, len(dataset))), 0)
        posterior = autoencoder.encode(to_torch(examples.images)).latent_dist
        means.append(posterior.mean)
        deviations.append(posterior.std)
        groups.append(torch.from_numpy(examples.groups.astype("int64")))
    return torch.cat(means), torch.cat(deviations), torch.cat(groups)


def train_unet(mean, deviation, groups, scale, seconds):
    """v-prediction on scaled latents; the average of the weights is what draws."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(48, 96),
        layers_per_block=2,
        down_block_types=["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2,
        cross_attention_dim=TOKEN_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    captions, scheduler = Captions(), DDPMScheduler(**SCHEDULE)
    parameters = [*unet.parameters(), *captions.parameters()]
    optimizer, average = (
        torch.optim.AdamW(parameters, lr=LEARNING_RATE),
        EMAModel(parameters, decay=EMA_DECAY),
    )
    clock = Clock("unet", seconds, optimizer)
    while clock.running():
        chosen = torch.randint(len(mean), (UNET_BATCH,))
        latents = (mean[chosen] + deviation[chosen] * torch.randn_like(mean[chosen])) * scale
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (UNET_BATCH,))
        context = captions(groups[chosen], torch.rand(UNET_BATCH) < DROPPED)
        found = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
        loss = functional.mse_loss(found, scheduler.get_velocity(latents, noise, timesteps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.step(parameters)
        clock.say(float(loss))
    average.copy_to(parameters)
    return unet.eval(), captions.eval()


@torch.no_grad()
def draw(unet, captions, autoencoder, groups, guidance_scale, guidance_start, steps, batch=200):
    """uint8 (n, 32, 32, 3) of int groups (n,), by DDIM with trailing timesteps."""
    scheduler, images = DDIMScheduler(**SCHEDULE, timestep_spacing="trailing", set_alpha_to_one=False), []
    for start in range(0, len(groups), batch):
        wanted = torch.from_numpy(groups[start : start + batch])
        none, all_of = torch.zeros(len(wanted), dtype=torch.bool), torch.ones(len(wanted), dtype=torch.bool)
        context = torch.cat([captions(wanted, all_of), captions(wanted, none)])
        latents = torch.randn(len(wanted), 4, 8, 8)
        scheduler.set_timesteps(steps)
        for step, t in enumerate(scheduler.timesteps):
            if guidance_scale == 1.0 or step < int(guidance_start * steps):
                found = unet(latents, t, context[len(wanted) :]).sample
            else:
                free, asked = unet(torch.cat([latents, latents]), t, context).sample.chunk(2)
                found = free + guidance_scale * (asked - free)
            latents = scheduler.step(found, t, latents).prev_sample
        images.append(to_uint8(autoencoder.decode(latents / autoencoder.config.scaling_factor).sample))
        print(f"guidance {guidance_scale:g}: {start + len(wanted)} of {len(groups)} pictures", flush=True)
    return np.concatenate(images)


@torch.no_grad()
def rebuild(autoencoder, images, batch=250):
    parts = (images[i : i + batch] for i in range(0, len(images), batch))
    return np.concatenate(
        [
            to_uint8(autoencoder.decode(autoencoder.encode(to_torch(part)).latent_dist.mode()).sample)
            for part in parts
        ]
    )


def train(minutes, output):
    """Trains and writes everything, all within the minutes."""
    began = time.monotonic()
    for file in output.glob("drawn-*.npz"):  # of other weights
        file.unlink()
    dataset, seconds = FashionMNIST("train"), 60 * minutes
    autoencoder = train_autoencoder(dataset, AUTOENCODER_SHARE * seconds - (time.monotonic() - began))
    mean, deviation, groups = encode(autoencoder, dataset)
    scale = float(1.0 / torch.sqrt(mean.var() + deviation.square().mean()))
    unet, captions = train_unet(mean, deviation, groups, scale, seconds - (time.monotonic() - began))
    autoencoder.register_to_config(scaling_factor=scale)
    autoencoder.save_pretrained(output / "vae")
    unet.save_pretrained(output / "unet")
    save_file(captions.state_dict(), output / "captions.safetensors")


def prompts(samples, tinted_samples):
    """The groups of grey and of tinted pictures, in the order of `sd_tf.evaluation.scores.Drawn`."""
    grey = np.arange(len(CLASS_NAMES)) * COLOURS
    tinted = [group for group in range(len(CLASS_NAMES) * COLOURS) if group % COLOURS]
    return np.repeat(grey, samples // len(grey)), np.repeat(tinted, tinted_samples // len(tinted))


def draw_all(scale, start, steps, samples, tinted_samples, output):
    """Every picture that is judged, from what `train` wrote."""
    autoencoder = AutoencoderKL.from_pretrained(output / "vae").eval()
    unet, captions = UNet2DConditionModel.from_pretrained(output / "unet").eval(), Captions().eval()
    captions.load_state_dict(load_file(output / "captions.safetensors"))
    others = np.repeat(FashionMNIST("test").grey[::2, ..., None], 3, axis=-1)
    rebuilt = rebuild(autoencoder, others)
    pictures = [
        draw(unet, captions, autoencoder, groups, scale, start, steps)
        for groups in prompts(samples, tinted_samples)
    ]
    file = output / f"drawn-{scale:g}-{start:g}-{samples}-{tinted_samples}.npz"
    np.savez(file, grey=pictures[0], tinted=pictures[1], rebuilt=rebuilt)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="trains for so many; draws where none are given")
    parser.add_argument("--guidance-scale", type=float, default=2.5)
    parser.add_argument("--guidance-start", type=float, default=0.0, help="share of the steps without")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--tinted-samples", type=int, default=1600)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    diffusers.utils.logging.set_verbosity_error()
    if options.minutes is not None:
        train(options.minutes, options.output)
    else:
        guidance = options.guidance_scale, options.guidance_start
        draw_all(*guidance, options.steps, options.samples, options.tinted_samples, options.output)


if __name__ == "__main__":
    main()
