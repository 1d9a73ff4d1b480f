"""Presets of cascades: network sizes and training settings by name."""

from dataclasses import dataclass, field, replace

from sd_tf.cascade.config import PixelUNetConfig
from sd_tf.diffusion.schedules import ScheduleConfig
from sd_tf.errors import argument, unknown
from sd_tf.generation.settings import Settings
from sd_tf.training.finetuning_options import LEARNING_RATES
from sd_tf.training.options import StageConfig

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class StagePreset:
    """What a stage needs except its data."""

    unet: PixelUNetConfig
    schedule: ScheduleConfig
    training: StageConfig
    noising: ScheduleConfig | None = None  # of super-resolution stages
    augment_level: int = 0
    crop: int = 0  # pixels along a side of the patches that are learned from; 0 for whole pictures
    recommended: Settings = Settings()  # of the models that it makes


@dataclass(frozen=True)
class Preset:
    """Everything that a run needs except its data."""

    stages: tuple[StagePreset, ...]
    text_encoder: str
    max_minutes: float
    text_length: int | None = None
    timestep_sampling: str = "uniform"
    logit_mean: float = 0.0
    min_snr_gamma: float | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)  # by what is fine-tuned
    command: str = ""  # of trained weights, with their runtime and scores
    runtime: str = ""
    scores: str = ""

    def stage(self, number: int) -> StagePreset:
        """The stage's; of those behind the last, the last one's."""
        return self.stages[min(number, len(self.stages) - 1)]


def schedule_of_pixels(**changes):
    """Cosine, with dynamic thresholding; the fields of `kept` are those of diffusers' scheduler."""
    usual = ScheduleConfig(
        beta_schedule="squaredcos_cap_v2",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=0,
        set_alpha_to_one=True,
        clip_sample=False,
        kept={
            "_class_name": "DDPMScheduler",
            "variance_type": "learned_range",
            "thresholding": True,
            "dynamic_thresholding_ratio": 0.995,
            "sample_max_value": 100.0,  # no limit, as in Imagen; DeepFloyd IF has 1.5
        },
    )
    return replace(usual, **changes)


NOISING = schedule_of_pixels(prediction_type="epsilon", kept={"_class_name": "DDPMScheduler"})
# Garments lie on black, which dynamic thresholding lifts to grey: their pixels are clipped instead.
ON_BLACK = schedule_of_pixels(
    clip_sample=True, kept={"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
)
DRAWING = Settings(steps=20, guidance_scale=3.0, sampler="dpmpp_2m")
ENLARGING = Settings(steps=10, guidance_scale=1.0, sampler="dpmpp_2m")

BASE_16 = PixelUNetConfig(  # few channels at the full size: a step takes 0.38 of that with 64
    sample_size=16,
    in_channels=3,
    out_channels=6,
    block_out_channels=(32, 128),
    layers_per_block=1,
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    attention_head_dim=32,
    cross_attention_dim=128,
    encoder_hid_dim=128,
    addition_embed_type_num_heads=4,
    act_fn="silu",
    norm_num_groups=16,
)
ENLARGE_32 = replace(
    BASE_16,
    sample_size=32,
    in_channels=6,
    block_out_channels=(16, 48, 96),
    down_block_types=("ResnetDownsampleBlock2D",) * 2 + ("SimpleCrossAttnDownBlock2D",),
    up_block_types=("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * 2,
    class_embed_type="timestep",
)

SMALL = Preset(
    stages=(
        StagePreset(
            BASE_16,
            ON_BLACK,
            StageConfig(batch_size=64, learning_rate=3e-3, share=0.6, optimizer="muon"),
            recommended=DRAWING,
        ),
        StagePreset(
            ENLARGE_32,
            ON_BLACK,
            StageConfig(batch_size=32, learning_rate=3e-3, share=0.4, optimizer="muon"),
            noising=NOISING,
            augment_level=100,
            recommended=ENLARGING,
        ),
    ),
    text_encoder="clip-mini",
    max_minutes=30,
)

BASE_64 = replace(
    BASE_16,
    sample_size=64,
    block_out_channels=(32, 64, 128, 128),
    down_block_types=("ResnetDownsampleBlock2D",) * 2 + ("SimpleCrossAttnDownBlock2D",) * 2,
    up_block_types=("SimpleCrossAttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",) * 2,
    cross_attention_dim=256,
)
ENLARGE_128 = replace(
    ENLARGE_32,
    sample_size=128,
    block_out_channels=(16, 32, 64, 96),
    down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("SimpleCrossAttnDownBlock2D",),
    up_block_types=("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * 3,
)
PICTURES = Preset(
    stages=(
        replace(
            SMALL.stages[0],
            unet=BASE_64,
            schedule=schedule_of_pixels(),
            training=replace(SMALL.stages[0].training, batch_size=32, share=0.75),
        ),
        replace(
            SMALL.stages[1],
            unet=ENLARGE_128,
            schedule=schedule_of_pixels(),
            crop=64,
            training=replace(SMALL.stages[1].training, batch_size=16, share=0.25),
        ),
    ),
    text_encoder=MINILM,
    text_length=32,
    max_minutes=120,
)
FINE_TUNING = replace(
    PICTURES,
    stages=tuple(
        replace(
            stage,
            crop=0,
            training=StageConfig(
                batch_size=16, learning_rate=1e-5, lr_schedule="constant", share=stage.training.share
            ),
        )
        for stage in PICTURES.stages
    ),
    learning_rates=LEARNING_RATES,
    max_minutes=10,
)

PRESETS = {
    "cascade-small": SMALL,
    "cascade-emoji": PICTURES,
    "cascade-pokemon": PICTURES,
    "cascade-pictures": PICTURES,
    "fine-tuning": FINE_TUNING,
}
PRESET_OF_DATASET = {
    "fashion_mnist": "cascade-small",
    "garments": "cascade-small",
    "pokemon": "cascade-pokemon",
    "emoji": "cascade-emoji",
}


def preset_of(dataset: str) -> str:
    """The name of a data set's default preset."""
    return PRESET_OF_DATASET.get(dataset, "cascade-pictures")


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PRESETS:
        raise unknown(argument("preset"), name, PRESETS)
    return PRESETS[name]
