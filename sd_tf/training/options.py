"""How a stage of training optimises."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageConfig:
    """How one stage of training optimises: the optimizer, warm-up, decay, clipping, EMA."""

    batch_size: int
    learning_rate: float
    share: float  # of the run's minutes
    max_steps: int  # where no minutes are given
    optimizer: str = "adamw"
    lr_schedule: str = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
