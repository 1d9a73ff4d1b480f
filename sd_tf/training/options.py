"""What a training is told: how a stage optimises, and the options that runs of every family share."""

import dataclasses
from dataclasses import dataclass

from sd_tf.errors import InputError, argument
from sd_tf.options import Options, option

OPTIMIZERS = ("muon", "adamw")
LR_SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
STRATEGIES = ("none", "mirrored", "multiworker", "tpu")
# As errors name them: the argument of `fit`, or the flag.
FOLDER = argument("folder", "--output")
MINUTES, STEPS = argument("minutes", "--max-minutes"), argument("steps", "--max-steps")
OPTIMIZING, RUNNING, SCALING = "optimizer, in every stage", "run", "memory, speed and several devices"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How a network's weights are updated; see `sd_tf.training.optimizer`."""

    learning_rate: float  # at its peak
    optimizer: str = "adamw"
    lr_schedule: str = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999


@dataclass(frozen=True, kw_only=True)
class StageConfig(OptimizerConfig):
    """What a preset says of a stage with one network: how it optimises, and its part of the run."""

    batch_size: int  # of all replicas together
    share: float = 1.0  # of the run's minutes, beside the other stages' shares


@dataclass(frozen=True)
class OptimizerOptions(Options):
    """What replaces, in every stage, what its preset says."""

    batch_size: int | None = option(None, "pictures in a step, of all replicas", at_least=1, group=OPTIMIZING)
    optimizer: str | None = option(None, "muon or AdamW", choices=OPTIMIZERS, group=OPTIMIZING)
    learning_rate: float | None = option(None, "its highest value", at_least=1e-12, group=OPTIMIZING)
    lr_schedule: str | None = option(
        None, "how the learning rate falls after the warm-up", choices=LR_SCHEDULES, group=OPTIMIZING
    )
    warmup_steps: int | None = option(
        None, "steps in which the learning rate rises", at_least=0, group=OPTIMIZING
    )
    weight_decay: float | None = option(
        None, "of weights, not of biases and norms", at_least=0, group=OPTIMIZING
    )
    gradient_clip: float | None = option(
        None, "largest global norm of the gradients", at_least=1e-12, group=OPTIMIZING
    )
    ema_decay: float | None = option(
        None,
        "decay of the moving average of the weights, which is what is saved",
        at_least=0,
        below=1,
        example="0.9999",
        group=OPTIMIZING,
    )

    def applied_to(self, config: OptimizerConfig) -> OptimizerConfig:
        """A preset's configuration with what is given here in its place."""
        names = {field.name for field in dataclasses.fields(config)}
        return dataclasses.replace(
            config, **{name: value for name, value in self.given.items() if name in names}
        )


@dataclass(frozen=True)
class RunOptions(Options):
    """What runs of every family share.

    Raises:
        InputError: options that do not go together.
    """

    output: str = option(
        "runs/{dataset}",
        "run folder; the same command resumes the run in it",
        name="folder",
        identifies=False,
        group=RUNNING,
    )
    max_minutes: float | None = option(
        None, "time that the run may train", at_least=0.01, name="minutes", group=RUNNING
    )
    max_steps: int | None = option(
        None, "steps of each stage, instead of minutes", at_least=1, name="steps", group=RUNNING
    )
    seed: int = option(0, "of everything random", at_least=0, at_most=2**32 - 1, group=RUNNING)
    checkpoint_seconds: float = option(
        60.0, "seconds between two checkpoints", at_least=0, identifies=False, group=RUNNING
    )
    checkpoint_every: int | None = option(
        None, "steps between two checkpoints, instead of seconds", at_least=1, identifies=False, group=RUNNING
    )
    keep_checkpoints: int = option(
        2, "how many checkpoints of a stage are kept", at_least=1, identifies=False, group=RUNNING
    )
    snapshots: int = option(
        0,
        "how many copies of the denoiser are kept on the way, for python -m sd_tf.sweep",
        at_least=0,
        identifies=False,
        group=RUNNING,
    )
    previews: int = option(
        8,
        "how many sheets of pictures are drawn in each stage; 0 for none",
        at_least=0,
        identifies=False,
        group=RUNNING,
    )
    save_dtype: str = option(
        "float32",
        "of the finished model's files",
        choices=("float32", "float16"),
        identifies=False,
        group=RUNNING,
    )
    cache_dir: str | None = option(
        None,
        "folder of cached latents and texts (default: in the run folder)",
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
        "print the run's settings, memory and steps, and write nothing",
        identifies=False,
        group=RUNNING,
    )
    overfit: int | None = option(
        None, "check a set-up: learn so many examples, the same in every step", at_least=2, group=RUNNING
    )
    deterministic: bool = option(False, "repeatable to the bit; needs --max-steps", group=RUNNING)
    precision: str = option(
        "float32", "of the networks' arithmetic", choices=PRECISIONS, name="dtype", group=SCALING
    )
    accumulate: int = option(
        1,
        "parts of a batch that a step takes one after another, for less memory",
        at_least=1,
        group=SCALING,
    )
    remat: bool = option(
        False,
        "compute activations again in the backward pass, for less memory",
        identifies=False,
        group=SCALING,
    )
    xla: bool = option(
        False,
        "compile steps by XLA: minutes longer to start, and faster on GPU and TPU",
        identifies=False,
        group=SCALING,
    )
    strategy: str = option(
        "none", "how several devices are used", choices=STRATEGIES, identifies=False, group=SCALING
    )
    replicas: int | None = option(
        None,
        "of --strategy mirrored (default: all GPUs; on a CPU, 2)",
        at_least=1,
        identifies=False,
        group=SCALING,
    )
    workers: int | None = option(
        None,
        "processes on this machine, of --strategy multiworker",
        at_least=1,
        identifies=False,
        group=SCALING,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.workers is not None and self.strategy not in ("none", "multiworker"):
            raise InputError(
                f"{self.named_value('workers')} with {argument('strategy')} {self.strategy}: take "
                f"{argument('strategy')} multiworker"
            )
        if self.max_minutes is not None and self.max_steps is not None:
            raise InputError(f"{MINUTES} and {STEPS} are both given: a run has one budget")
        if self.deterministic and self.max_steps is None:
            raise InputError(
                f"{argument('deterministic')} needs {STEPS}: minutes hold more or fewer steps each time"
            )
