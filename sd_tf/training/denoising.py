"""Stages that train a denoiser: what is drawn for each example, and the loss by ranges of timesteps."""

import itertools

import numpy as np

from sd_tf.seeding import normals, uniforms
from sd_tf.training.stage import SinglePlayerStage, mean_of_some

# Keys of independent streams of random numbers (`sd_tf.seeding`); 1 is `generate`'s, 2 a family's own.
DIFFUSION_NOISE, DRAWS, OFFSET_NOISE, TIMESTEPS = 3, 4, 5, 6
BINS = 10  # ranges of timesteps whose losses are logged separately


class DenoisingStage(SinglePlayerStage):
    """A denoiser with caption dropout (Ho & Salimans 2022). A subclass has the batches and the loss.

    Args:
        config: a `StageConfig`.
        network: the denoiser, a built Keras model.
        schedule: its `NoiseSchedule`.
        caption_dropout: share of captions replaced by the empty caption.
        seed: seed of the order, noise, timesteps and dropout.
        min_snr_gamma: of the loss weights, see `diffusion.losses`; None for no weights.
        timestep_sampling: "uniform", or "logit_normal": the timestep, as a share of all timesteps, is the
            sigmoid of a normal number with standard deviation 1, so that those in the middle are drawn more
            often (Esser et al. 2024, section 3.1).
        logit_mean: mean of that normal number; below 0, timesteps with less noise are drawn more often.
        offset_noise: standard deviation of additional noise that is constant over each channel, which
            lets pictures become brighter or darker as a whole (Guttenberg 2023, "Diffusion with Offset
            Noise"); 0 for none.
    """

    divisible = True

    def __init__(
        self,
        config,
        network,
        schedule,
        caption_dropout,
        seed,
        min_snr_gamma=None,
        timestep_sampling="uniform",
        logit_mean=0.0,
        offset_noise=0.0,
    ):
        super().__init__(config, network)
        self.schedule, self.caption_dropout, self.seed = schedule, caption_dropout, seed
        self.min_snr_gamma, self.offset_noise = min_snr_gamma, offset_noise
        self.timestep_sampling, self.logit_mean = timestep_sampling, logit_mean
        num_timesteps = schedule.config.num_train_timesteps
        edges = sorted({num_timesteps * i // BINS for i in range(BINS + 1)})
        self.bins = list(itertools.pairwise(edges))  # (first timestep, last timestep + 1)

    def drawn(self, indices, epoch, shape) -> dict[str, np.ndarray]:
        """What is random in some examples of an epoch.

        Args:
            indices: int64 (n,).
            epoch: of the data set.
            shape: of one example, such as (h, w, channels).

        Returns:
            "noise", standard normal float32 (n, *shape); "timesteps", int32 (n,); "dropped", bool (n,),
            True for captions that are left out.
        """
        num_timesteps = self.schedule.config.num_train_timesteps
        positions, dropping = uniforms((DRAWS, self.seed, epoch), indices, 2).T
        if self.timestep_sampling == "logit_normal":
            logits = self.logit_mean + normals((TIMESTEPS, self.seed, epoch), indices, ())
            positions = 1.0 / (1.0 + np.exp(-logits))
        noise = normals((DIFFUSION_NOISE, self.seed, epoch), indices, shape)
        if self.offset_noise:
            offset_shape = (*[1] * (len(shape) - 1), shape[-1])
            offsets = normals((OFFSET_NOISE, self.seed, epoch), indices, offset_shape)
            noise = noise + np.float32(self.offset_noise) * offsets
        return {
            "noise": noise,
            "timesteps": np.minimum(positions * num_timesteps, num_timesteps - 1).astype(np.int32),
            "dropped": dropping < self.caption_dropout,
        }

    def by_timesteps(self, loss, t) -> dict:
        """The loss of each example, float32 (batch,), and to be logged its means over ranges of timesteps."""
        losses = {"loss": loss}
        for first, end in self.bins:
            losses |= mean_of_some(f"loss of timesteps {first}-{end - 1}", loss, (first <= t) & (t < end))
        return losses
