"""What a user of MinImagen trains on Fashion-MNIST in colour, and its pictures.

    python -m benchmarks.peers.trained_minimagen --output DIR --measure 20
    python -m benchmarks.peers.trained_minimagen --output DIR --steps 3000
    python -m benchmarks.peers.trained_minimagen --output DIR --samples 400 --tinted-samples 160

Its base network, loss, optimizer and sampler with their defaults, at 32 pixels; `DIR/texts.npz` has the text
states, which `benchmarks.equal_minutes` writes. The second command writes `unet.safetensors` and
`training.json` into DIR, the third `drawn-*.npy`, a file for each prompt. Both go on where they were stopped.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.peers import as_installed
from sd_tf.data.fashion_mnist import FashionMNIST

SIDE, LEARNING_RATE, CLIP = 32, 1e-4, 50.0
UNET = {  # MinImagen's defaults, without attention at the full size, as the Pokemon report has it
    "dim": 128,
    "dim_mults": (1, 2, 4),
    "num_resnet_blocks": 1,
    "layer_attns": (False, True, True),
    "layer_cross_attns": (False, True, True),
}
DROPPED, PERCENTILE, TIMESTEPS = 0.15, 0.9, 1000
SAVED_EVERY = 500  # steps
WARM_UP = 3  # steps that are not timed


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


class Texts:
    """The states of captions, from `texts.npz`."""

    def __init__(self, folder):
        found = np.load(folder / "texts.npz")
        self.states, self.masks = (torch.from_numpy(found[name]) for name in ("states", "masks"))
        self.prompts = {kind: found[kind].tolist() for kind in ("grey", "tinted")}
        self.rows = {caption: row for row, caption in enumerate(found["captions"].tolist())}

    def __call__(self, captions):
        """(states, masks) of some captions."""
        rows = [self.rows[caption] for caption in captions]
        return self.states[rows], self.masks[rows]


def steps(imagen, texts, batch_size, optimizer, first=0):
    """Takes a training step for each item that is asked for; yields the losses.

    As MinImagen's loop has it: the loss, clipping of gradients, Adam.
    """
    dataset, number, parameters = FashionMNIST("train"), first, list(imagen.unets[0].parameters())
    while True:
        epoch, start = divmod(number * batch_size, len(dataset) // batch_size * batch_size)
        order = np.random.default_rng(epoch).permutation(len(dataset))
        examples = dataset.examples(order[start : start + batch_size], epoch)
        images = torch.from_numpy(examples.images).permute(0, 3, 1, 2).float() / 255
        states, masks = texts(examples.captions)
        loss = imagen(images, text_embeds=states, text_masks=masks)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        number += 1
        yield loss.item()


def adam(imagen):
    return torch.optim.Adam(imagen.unets[0].parameters(), lr=LEARNING_RATE)


def measure(folder, number, batch_size):
    """Seconds of a step, the median of some."""
    texts = Texts(folder)
    imagen = made(texts.states.shape[-1]).train()
    losses, taken = steps(imagen, texts, batch_size, adam(imagen)), []
    for _ in range(WARM_UP + number):
        began = time.perf_counter()
        next(losses)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[WARM_UP:]))


def train(folder, number, batch_size):
    """Trains for so many steps, and writes the weights; goes on from a state that an earlier call left."""
    texts, state = Texts(folder), folder / "state.pt"
    imagen, asked = made(texts.states.shape[-1]).train(), {"steps": number, "batch_size": batch_size}
    done, before = 0, 0.0  # steps and seconds of earlier calls
    unet, optimizer = imagen.unets[0], adam(imagen)
    if state.is_file():
        found = torch.load(state, weights_only=True)
        if found["asked"] != asked:
            raise SystemExit(f"{folder} is of {found['asked']}, not {asked}: name another --output")
        unet.load_state_dict(found["unet"])
        optimizer.load_state_dict(found["optimizer"])
        done, before = found["done"], found.get("seconds", 0.0)
    losses, began, recent = steps(imagen, texts, batch_size, optimizer, done), time.monotonic(), []
    while done < number:
        recent.append(next(losses))
        done += 1
        if done % SAVED_EVERY == 0 or done == number:
            seconds = before + time.monotonic() - began
            values = {"asked": asked, "done": done, "seconds": seconds, "unet": unet.state_dict()}
            torch.save(values | {"optimizer": optimizer.state_dict()}, folder / "state.tmp")
            (folder / "state.tmp").rename(state)
            print(f"step {done} of {number}, loss {np.mean(recent):.4f}", flush=True)
            recent = []
    seconds = before + time.monotonic() - began
    save_file(unet.state_dict(), folder / "unet.safetensors")
    (folder / "training.json").write_text(json.dumps(asked | {"seconds": round(seconds, 1)}))
    state.unlink(missing_ok=True)


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
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def draw_all(folder, samples, tinted_samples, scale, number_of_steps):
    """Writes the pictures of each prompt into a file of its own."""
    texts = Texts(folder)
    imagen = made(texts.states.shape[-1]).eval()
    imagen.unets[0].load_state_dict(load_file(folder / "unet.safetensors"))
    for kind, total in (("grey", samples), ("tinted", tinted_samples)):
        own = texts.prompts[kind]
        number = total // len(own)
        for i, prompt in enumerate(own):
            file = drawn_file(folder, kind, i, number, scale, number_of_steps)
            if file.is_file():
                continue
            torch.manual_seed(i + 1000 * (kind == "tinted"))
            images = draw(imagen, *texts([prompt] * number), scale, number_of_steps)
            np.save(file.with_suffix(".tmp.npy"), images)
            file.with_suffix(".tmp.npy").rename(file)
            print(f"{kind}: {(i + 1) * number} of {number * len(own)} pictures", flush=True)


def drawn_file(folder, kind, i, number, scale, number_of_steps):
    """Where the pictures of a prompt are."""
    return folder / f"drawn-{scale:g}-{number_of_steps}-{number}-{kind}-{i:02}.npy"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--measure", type=int, help="times so many steps")
    parser.add_argument("--steps", type=int, help="trains for so many; draws where none are given")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--tinted-samples", type=int, default=160)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--sampling-steps", type=int, default=TIMESTEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    if options.measure is not None:
        print(measure(options.output, options.measure, options.batch_size))
    elif options.steps is not None:
        train(options.output, options.steps, options.batch_size)
    else:
        draw_all(
            options.output,
            options.samples,
            options.tinted_samples,
            options.guidance_scale,
            options.sampling_steps,
        )


if __name__ == "__main__":
    main()
