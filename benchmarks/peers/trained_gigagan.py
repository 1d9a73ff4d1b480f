"""What a user of gigagan-pytorch trains on Fashion-MNIST in colour, and its pictures.

    python -m benchmarks.peers.trained_gigagan --output DIR --measure 20
    python -m benchmarks.peers.trained_gigagan --output DIR --steps 1000
    python -m benchmarks.peers.trained_gigagan --output DIR --samples 400 --tinted-samples 160

Its trainer `GigaGAN` with its own networks, losses, Adam and moving average, on a CPU; `DIR/texts.npz` has
the text states, which `benchmarks.equal_minutes` writes. The second command writes `generator.safetensors`,
the moving average, and `training.json` into DIR, and goes on where it was stopped. The third writes
`drawn-*.npy`, a file for each prompt.

Kept are its defaults: two kernels in a bank, attention at 32 and 16 pixels, pictures of 16 and 8
pixels beside the whole one for the discriminator, the hinge loss, of all scales, with its weights, the
gradient penalty of real and drawn pictures every fourth step, the reconstruction and the matching loss, the
learning rate, and the moving average. Changed, or without a default:

- at most 128 channels, and 128 in the first map, of which 256 and 512 would be its own: its kernels are mixed
  for each picture, which is slow on a processor
- the mapping network is 64 wide and 4 deep, as in its README; so are the text layers on the frozen states
- batches of 16, see `docs/benchmarks.md`

Not its own:

- `clip-mini` in the place of an OpenCLIP that is downloaded. The contrastive loss, of weight 0.1 by default,
  is left out, since it needs that network's tower of pictures.
- what its steps are fed, see `fed`, without which no text is learned
"""

import time

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.peers import as_installed, training
from benchmarks.peers.drawn_files import KINDS, drawn_file, write_pictures, write_speed
from benchmarks.peers.training import SIDE

SIZES = {"image_size": SIDE, "dim_max": 128}
STYLE = {"dim": 64, "depth": 4, "dim_text_latent": 64}
TEXT = {"dim": 64, "depth": 4}
DRAWN_AT_ONCE = 64  # pictures, as `generate` of ours


def frozen(texts):
    """What gigagan-pytorch's networks read texts with: an adapter of OpenCLIP that looks their states up."""
    library = as_installed.gigagan_pytorch()

    class Frozen(library.OpenClipAdapter):
        dim_latent = texts.width

        def __init__(self):
            torch.nn.Module.__init__(self)

        def embed_texts(self, captions):
            states, masks = texts(captions)
            return None, states.masked_fill(~masks[..., None], 0.0)  # zeros are what its layers mask

    return Frozen()


def fed(batches):
    """The three items that a step of gigagan-pytorch asks for, with the texts that its losses are meant for.

    Its discriminator's step takes pictures from a first item, and the texts that these are judged with from a
    second: it gets one batch twice. Its matching loss takes those of the first item as they are, though it
    means to turn them by one: the first item's texts are turned by one. Its generator's step takes the texts
    of the third.
    """
    for images, captions in batches:
        yield images, [*captions[1:], captions[0]]
        yield images, captions
        yield images, captions


class GigaGAN:
    """A peer, as `benchmarks.peers.training` has them."""

    name, weights, losses = "gigagan-pytorch", "generator.safetensors", ("discriminator", "generator")
    batch_size, saved_every, steps_of_a_round = 16, 100, 4  # the gradient penalty is every fourth step's

    def __init__(self, texts):
        self.texts, self.library, self.clip = texts, as_installed.gigagan_pytorch(), frozen(texts)
        self._trainer = None

    @property
    def trainer(self):
        """Its `GigaGAN`, made when it is first asked for."""
        if self._trainer is None:
            self._trainer = self.library.GigaGAN(
                generator=self.generator(),
                discriminator=SIZES | {"text_encoder": TEXT | {"clip": self.clip}},
                generator_contrastive_loss_weight=0.0,
                accelerate_kwargs={"cpu": True},
                model_folder=".",  # which it makes sure of; nothing is written there
                results_folder=".",
            )
        return self._trainer

    def generator(self):
        """A new `Generator`."""
        text = TEXT | {"clip": self.clip}
        return self.library.Generator(
            **SIZES, dim_latent=SIZES["dim_max"], style_network=STYLE, text_encoder=text
        )

    def steps(self, batch_size, first):
        """As its loop has it: the discriminator, then the generator and its moving average."""
        trainer, items = self.trainer, fed(training.batches(batch_size, first))
        while True:
            number = trainer.steps.item()
            of_discriminator = trainer.train_discriminator_step(
                dl_iter=items, apply_gradient_penalty=number % trainer.apply_gradient_penalty_every == 0
            )
            of_generator = trainer.train_generator_step(dl_iter=items, batch_size=batch_size)
            trainer.steps += 1
            yield of_discriminator.divergence, of_generator.divergence

    def state(self):
        optimizers = [each.state_dict() for each in (self.trainer.G_opt, self.trainer.D_opt)]
        return {"gan": self.trainer.state_dict(), "optimizers": optimizers}

    def load_state(self, state):
        self.trainer.load_state_dict(state["gan"])
        for optimizer, own in zip((self.trainer.G_opt, self.trainer.D_opt), state["optimizers"], strict=True):
            optimizer.load_state_dict(own)

    def tensors(self):
        return self.trainer.G_ema.ema_model.state_dict()

    @staticmethod
    def add_flags(parser):
        """It has none."""

    @torch.inference_mode()
    def draw(self, folder, options):
        """Writes the pictures of each prompt into a file of its own; all are drawn twice, once to warm up."""
        generator, totals = self.generator().eval(), (options.samples, options.tinted_samples)
        generator.load_state_dict(load_file(folder / self.weights))
        numbers = [total // len(self.texts.prompts[kind]) for kind, total in zip(KINDS, totals, strict=True)]
        prompts = [
            prompt
            for kind, number in zip(KINDS, numbers, strict=True)
            for prompt in self.texts.prompts[kind]
            for _ in range(number)
        ]
        for _ in range(2):
            torch.manual_seed(options.seed)
            began = time.perf_counter()
            images = torch.cat(
                [
                    generator(texts=some, batch_size=len(some)).clamp(0, 1)
                    for start in range(0, len(prompts), DRAWN_AT_ONCE)
                    for some in [prompts[start : start + DRAWN_AT_ONCE]]
                ]
            )
            seconds = time.perf_counter() - began
        write_speed(folder, totals, (), len(prompts), seconds)
        print(f"{len(prompts)} pictures, {len(prompts) / seconds:.2f} a second", flush=True)
        images = iter(training.to_uint8(images))
        for kind, number in zip(KINDS, numbers, strict=True):
            for i in range(len(self.texts.prompts[kind])):
                own = np.stack([next(images) for _ in range(number)])
                write_pictures(drawn_file(folder, kind, i, number), own)


if __name__ == "__main__":
    training.main(GigaGAN, __doc__)
