"""What a user of MinImagen trains on Fashion-MNIST in colour, and its pictures.

    python -m benchmarks.peers.trained_minimagen --output DIR --measure 20
    python -m benchmarks.peers.trained_minimagen --output DIR --steps 3000
    python -m benchmarks.peers.trained_minimagen --output DIR --samples 400 --tinted-samples 160

Its base network, loss, optimizer and sampler with their defaults, at 32 pixels; `DIR/texts.npz` has the text
states, which `benchmarks.equal_minutes` writes. The second command writes `unet.safetensors` and
`training.json` into DIR, the third `drawn-*.npy`, a file for each prompt. Both go on where they were stopped.
"""

import time

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.peers import as_installed, training
from benchmarks.peers.drawn_files import KINDS, add_speed, drawn_file, write_pictures
from benchmarks.peers.training import SIDE

LEARNING_RATE, CLIP = 1e-4, 50.0
UNET = {  # MinImagen's defaults, without attention at the full size, as the Pokemon report has it
    "dim": 128,
    "dim_mults": (1, 2, 4),
    "num_resnet_blocks": 1,
    "layer_attns": (False, True, True),
    "layer_cross_attns": (False, True, True),
}
DROPPED, PERCENTILE, TIMESTEPS = 0.15, 0.9, 1000


def made(width):
    """A new `Imagen` of one stage, for text states of that width."""
    imagen, unets = as_installed.minimagen()
    return imagen.Imagen(
        [unets.Unet(**UNET, text_embed_dim=width)],
        image_sizes=[SIDE],
        text_encoder_name="t5_small",  # whose name is looked up; its states are not asked for
        text_embed_dim=width,
        cond_drop_prob=DROPPED,
        dynamic_thresholding_percentile=PERCENTILE,
        timesteps=TIMESTEPS,
    )


class MinImagen:
    """A peer, as `benchmarks.peers.training` has them."""

    name, weights, losses = "minimagen", "unet.safetensors", ("loss",)
    batch_size, saved_every, steps_of_a_round = 2, 500, 1

    def __init__(self, texts):
        self.texts, self.imagen = texts, made(texts.width)
        self.unet = self.imagen.unets[0]
        self.optimizer = torch.optim.Adam(self.unet.parameters(), lr=LEARNING_RATE)

    def steps(self, batch_size, first):
        """As MinImagen's loop has it: the loss, clipping of gradients, Adam."""
        self.imagen.train()
        for images, captions in training.batches(batch_size, first):
            states, masks = self.texts(captions)
            loss = self.imagen(images, text_embeds=states, text_masks=masks)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(self.unet.parameters()), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            yield (loss.item(),)

    def state(self):
        return {"unet": self.unet.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state):
        self.unet.load_state_dict(state["unet"])
        self.optimizer.load_state_dict(state["optimizer"])

    def tensors(self):
        return self.unet.state_dict()

    @staticmethod
    def add_flags(parser):
        parser.add_argument("--guidance-scale", type=float, default=3.0)
        parser.add_argument("--sampling-steps", type=int, default=TIMESTEPS)

    def draw(self, folder, options):
        """Writes the pictures of each prompt into a file of its own; leaves those that are there."""
        self.unet.load_state_dict(load_file(folder / self.weights))
        self.imagen.eval()
        settings = options.guidance_scale, options.sampling_steps
        totals = options.samples, options.tinted_samples
        for kind, total in zip(KINDS, totals, strict=True):
            own = self.texts.prompts[kind]
            number = total // len(own)
            for i, prompt in enumerate(own):
                file = drawn_file(folder, kind, i, number, *settings)
                if file.is_file():
                    continue
                torch.manual_seed(i + 1000 * (kind == "tinted"))
                began = time.perf_counter()
                images = draw(self.imagen, *self.texts([prompt] * number), *settings)
                add_speed(folder, totals, settings, number, time.perf_counter() - began)
                write_pictures(file, images)
                print(f"{kind}: {(i + 1) * number} of {number * len(own)} pictures", flush=True)


class Respaced:
    """A network that is asked for timesteps of a shorter list by their places in it."""

    def __init__(self, unet, timesteps):
        self.unet, self.timesteps = unet, torch.from_numpy(timesteps)

    def forward_with_cond_scale(self, x, t, **others):
        return self.unet.forward_with_cond_scale(x, self.timesteps[t], **others)


def respaced(scheduler, timesteps):
    """MinImagen's scheduler for some of its timesteps, with the betas between them.

    Nichol and Dhariwal 2021, section 4: of a shorter list, alphas_cumprod are those of its timesteps.
    """
    alphas = scheduler.alphas_cumprod.double()[torch.from_numpy(timesteps)]
    before = torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    betas, short = 1 - alphas / before, type(scheduler)(timesteps=max(20, len(timesteps)))
    short.num_timesteps = len(timesteps)
    variance = betas * (1 - before) / (1 - alphas)
    for name, value in {
        "sqrt_recip_alphas_cumprod": (1 / alphas).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - alphas),
    }.items():
        setattr(short, name, value.float())
    return short


@torch.no_grad()
def draw(imagen, states, masks, scale, number_of_steps):
    """uint8 (n, 32, 32, 3), by MinImagen's sampler; with fewer steps than 1000, by some of its timesteps."""
    scheduler, unet = imagen.noise_schedulers[0], imagen.unets[0]
    if number_of_steps < TIMESTEPS:
        timesteps = np.linspace(0, TIMESTEPS - 1, number_of_steps).round().astype("int64")
        scheduler, unet = respaced(scheduler, timesteps), Respaced(unet, timesteps)
    images = imagen._p_sample_loop(
        unet,
        (len(states), 3, SIDE, SIDE),
        noise_scheduler=scheduler,
        text_embeds=states,
        text_mask=masks,
        cond_scale=scale,
    )
    return training.to_uint8(images)


if __name__ == "__main__":
    training.main(MinImagen, __doc__)
