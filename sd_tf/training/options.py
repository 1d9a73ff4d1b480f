"""Training options: a stage's optimizer settings, and the options that runs of every family share."""

import dataclasses
from dataclasses import dataclass

from sd_tf.errors import InputError, argument, unknown
from sd_tf.options import Options, option

OPTIMIZERS = ("muon", "adamw")
LR_SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
STRATEGIES = ("none", "mirrored", "multiworker", "tpu")
# Names in error messages: the argument of `fit`, or the flag.
FOLDER = argument("folder", "--output")
MINUTES, STEPS = argument("minutes", "--max-minutes"), argument("steps", "--max-steps")
TIMESTEP_SAMPLINGS = ("uniform", "logit_normal")
DENOISING = "diffusion loss"
OPTIMIZING, RUNNING, SCALING = "optimizer, in every stage", "run", "memory, speed and devices"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How a network's weights are updated; see `sd_tf.training.optimizer`."""

    learning_rate: float  # peak value
    optimizer: str = "adamw"
    lr_schedule: str = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    beta_1: float = 0.9  # of AdamW; players of a GAN take 0, since the other changes their loss
    beta_2: float = 0.999


@dataclass(frozen=True, kw_only=True)
class StageConfig(OptimizerConfig):
    """A preset's settings for a stage with one network: its optimizer, batch size and share of the run."""

    batch_size: int  # of all replicas together
    share: float = 1.0  # of the run's minutes, relative to the other stages' shares


@dataclass(frozen=True)
class OptimizerOptions(Options):
    """Optimizer settings that override the preset's, in every stage."""

    batch_size: int | None = option(
        None, "examples in a step, over all replicas", at_least=1, group=OPTIMIZING
    )
    optimizer: str | None = option(None, "optimizer", choices=OPTIMIZERS, group=OPTIMIZING)
    learning_rate: float | None = option(None, "peak learning rate", at_least=1e-12, group=OPTIMIZING)
    lr_schedule: str | None = option(
        None, "how the learning rate falls after the warm-up", choices=LR_SCHEDULES, group=OPTIMIZING
    )
    warmup_steps: int | None = option(
        None, "steps of linear warm-up of the learning rate", at_least=0, group=OPTIMIZING
    )
    weight_decay: float | None = option(
        None, "weight decay; biases and norms have none", at_least=0, group=OPTIMIZING
    )
    gradient_clip: float | None = option(
        None, "gradients are clipped to this global norm", at_least=1e-12, group=OPTIMIZING
    )
    ema_decay: float | None = option(
        None,
        "decay of the moving average of the weights, which the saved model uses",
        at_least=0,
        below=1,
        example="0.9999",
        group=OPTIMIZING,
    )

    def applied_to(self, config: OptimizerConfig) -> OptimizerConfig:
        """A preset's configuration, overridden by the options that are given."""
        names = {field.name for field in dataclasses.fields(config)}
        return dataclasses.replace(
            config, **{name: value for name, value in self.given.items() if name in names}
        )


@dataclass(frozen=True)
class DenoisingOptions(Options):
    """Options of the diffusion loss, which every family of diffusion models has; see `training.denoising`."""

    caption_dropout: float = option(
        0.1,
        "share of captions replaced by the empty caption, for classifier-free guidance",
        at_least=0,
        below=1,
        group=DENOISING,
    )
    min_snr_gamma: float | None = option(
        None,
        "min-SNR loss weighting: largest SNR, 5 in the paper (default: no weighting)",
        above=0,
        example="5",
        group=DENOISING,
    )
    timestep_sampling: str | None = option(
        None, "distribution of training timesteps", choices=TIMESTEP_SAMPLINGS, group=DENOISING
    )
    logit_mean: float | None = option(
        None,
        "mean of --timestep-sampling logit_normal; below 0 for less noise",
        at_least=-5,
        at_most=5,
        example="-0.5",
        group=DENOISING,
    )
    offset_noise: float = option(
        0.0,
        "standard deviation of noise that is constant over each channel; 0.1 is usual",
        at_least=0,
        group=DENOISING,
    )


@dataclass(frozen=True)
class RunOptions(Options):
    """Options of runs of every family.

    Raises:
        InputError: options contradict each other.
    """

    output: str = option(
        "runs/{dataset}",
        "run folder; the same command resumes the run in it",
        name="folder",
        identifies=False,
        group=RUNNING,
    )
    max_minutes: float | None = option(
        None, "training time in minutes", at_least=0.01, name="minutes", group=RUNNING
    )
    max_steps: int | None = option(
        None, "training steps of each stage, instead of minutes", at_least=1, name="steps", group=RUNNING
    )
    seed: int = option(0, "random seed", at_least=0, at_most=2**32 - 1, group=RUNNING)
    checkpoint_seconds: float = option(
        60.0, "seconds between two checkpoints", at_least=0, identifies=False, group=RUNNING
    )
    checkpoint_every: int | None = option(
        None, "steps between two checkpoints, instead of seconds", at_least=1, identifies=False, group=RUNNING
    )
    keep_checkpoints: int = option(
        2, "checkpoints to keep of each stage", at_least=1, identifies=False, group=RUNNING
    )
    snapshots: int = option(
        0,
        "copies of the denoiser to save during training; python -m sd_tf.sweep needs some, such as 8",
        at_least=0,
        identifies=False,
        group=RUNNING,
    )
    previews: int = option(
        8,
        "preview sheets to save in each stage, fewer where they would take over a twentieth of its minutes; "
        "0 for none",
        at_least=0,
        identifies=False,
        group=RUNNING,
    )
    save_dtype: str = option(
        "float32",
        "dtype of the saved weights",
        choices=("float32", "float16"),
        identifies=False,
        group=RUNNING,
    )
    cache_dir: str | None = option(
        None,
        "folder for decoded pictures, cached latents and caption embeddings (default: in the run folder)",
        identifies=False,
        group=RUNNING,
    )
    wandb: bool = option(
        False,
        "also log to Weights & Biases; WANDB_MODE=offline keeps it in the run folder",
        identifies=False,
        group=RUNNING,
    )
    dry_run: bool = option(
        False,
        "print the run's settings, steps and estimated memory; train and write nothing",
        identifies=False,
        group=RUNNING,
    )
    overfit: int | None = option(
        None, "sanity check: overfit one batch of this many examples", at_least=2, group=RUNNING
    )
    deterministic: bool = option(False, "bit-for-bit reproducible training; needs --max-steps", group=RUNNING)
    precision: str = option(
        "float32", "precision policy of the networks", choices=PRECISIONS, name="dtype", group=SCALING
    )
    accumulate: int = option(
        1,
        "gradient accumulation: parts of a batch computed one after another, for less memory",
        at_least=1,
        group=SCALING,
    )
    remat: bool = option(
        False,
        "gradient checkpointing: recompute activations in the backward pass, for less memory",
        identifies=False,
        group=SCALING,
    )
    xla: bool = option(
        False,
        "compile steps with XLA: minutes longer to start, faster on GPU and TPU",
        identifies=False,
        group=SCALING,
    )
    strategy: str = option(
        "none",
        "tf.distribute strategy for several devices",
        choices=STRATEGIES,
        identifies=False,
        group=SCALING,
    )
    replicas: int | None = option(
        None,
        "replicas of --strategy mirrored (default: all GPUs; on a CPU, 2)",
        at_least=1,
        identifies=False,
        group=SCALING,
    )
    workers: int | None = option(
        None,
        "processes of --strategy multiworker, on this machine",
        at_least=1,
        identifies=False,
        group=SCALING,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.workers is not None and self.strategy not in ("none", "multiworker"):
            raise InputError(
                f"{self.named_value('workers')} with {argument('strategy')} {self.strategy}: use "
                f"{argument('strategy')} multiworker"
            )
        if self.max_minutes is not None and self.max_steps is not None:
            raise InputError(f"{MINUTES} and {STEPS} are both given: leave one out")
        if self.deterministic and self.max_steps is None:
            raise InputError(
                f"{argument('deterministic')} needs {STEPS}: the number of steps in some minutes varies"
            )


def check_dtype(dtype):
    """Raises `InputError` for a policy that nothing is trained with, before a network is made with it.

    Args:
        dtype: a Keras precision policy or its name; None for Keras' global one.
    """
    import keras

    if dtype is None:
        return
    try:
        name = keras.dtype_policies.get(dtype).name
    except (TypeError, ValueError):
        name = dtype
    if name not in PRECISIONS:
        raise unknown(argument("dtype", "--precision"), name, PRECISIONS)
