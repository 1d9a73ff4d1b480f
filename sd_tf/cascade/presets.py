"""Presets of cascades: network sizes and training settings by name."""

from dataclasses import dataclass, field, replace

from sd_tf.cascade.config import PixelUNetConfig
from sd_tf.diffusion.schedules import ScheduleConfig
from sd_tf.errors import argument, unknown
from sd_tf.generation.settings import Settings
from sd_tf.training.finetuning_options import LEARNING_RATES
from sd_tf.training.options import StageConfig

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
T5_SMALL, T5_BASE, T5_XXL = "google-t5/t5-small", "google-t5/t5-base", "google/t5-v1_1-xxl"


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
    caption_dropout: float = 0.1
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
# Garments lie on black, icons on white, and dynamic thresholding greys either: pixels are clipped instead.
CLIPPED = schedule_of_pixels(
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
            CLIPPED,
            StageConfig(batch_size=64, learning_rate=3e-3, share=0.6, optimizer="muon"),
            recommended=DRAWING,
        ),
        StagePreset(
            ENLARGE_32,
            CLIPPED,
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
            training=replace(SMALL.stages[0].training, batch_size=32, share=0.75),
        ),
        replace(
            SMALL.stages[1],
            unet=ENLARGE_128,
            crop=64,
            training=replace(SMALL.stages[1].training, batch_size=16, share=0.25),
        ),
    ),
    text_encoder=MINILM,
    text_length=32,
    max_minutes=120,
)
# Imagen's efficient blocks: for the same minutes nearly twice the weights, which diffusers cannot open.
EFFICIENT_32 = replace(
    BASE_16,
    sample_size=32,
    block_out_channels=(64, 128, 128),
    layers_per_block=(1, 2, 1),
    down_block_types=("EfficientDownBlock2D",) + ("EfficientCrossAttnDownBlock2D",) * 2,
    up_block_types=("EfficientCrossAttnUpBlock2D",) * 2 + ("EfficientUpBlock2D",),
    cross_attention_dim=256,
)
EFFICIENT_128 = replace(
    ENLARGE_32,
    sample_size=128,
    block_out_channels=(32, 64, 96),
    down_block_types=("EfficientDownBlock2D",) * 2 + ("EfficientCrossAttnDownBlock2D",),
    up_block_types=("EfficientCrossAttnUpBlock2D",) + ("EfficientUpBlock2D",) * 2,
)
EMOJI = replace(
    PICTURES,
    stages=(
        replace(
            PICTURES.stages[0],
            unet=EFFICIENT_32,
            training=replace(PICTURES.stages[0].training, batch_size=64, share=0.65),
        ),
        replace(
            PICTURES.stages[1],
            unet=EFFICIENT_128,
            training=replace(PICTURES.stages[1].training, share=0.35),
        ),
    ),
    max_minutes=150,
    command="python -m sd_tf.train cascade --preset emoji-128 --dataset emoji --flip --text-encoder small "
    "--precision mixed_bfloat16 --save-dtype float16 --max-minutes 135",
    runtime="135 minutes on 2 cores of an AMD EPYC with AVX-512 and bfloat16 that did some other work",
    scores="no copies, 3.1 from the nearest training picture (those among themselves 7.6), colours of hearts "
    "0.63 (of real pictures 0.74; brown is called red): python -m sd_tf.evaluate --dataset emoji --model "
    'emoji --colour-prompt "a 3d icon of {} heart" --guidance-scale 1.5 3',
)
PIXELS_32 = replace(  # nothing to enlarge
    SMALL,
    stages=(replace(SMALL.stages[0], unet=EFFICIENT_32, recommended=replace(DRAWING, guidance_scale=1.5)),),
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

# -- what others tried, to be repeated ----------------------------------------------------------------
#
# Widths, levels and training settings are theirs, the blocks DeepFloyd IF's, which change the resolution
# by residual blocks. Numbers of parameters are as near as whole layers come; tests/cascade/test_presets.py
# has both.


def levels(attends: str, efficient: bool = False) -> dict:
    """Block types of a `PixelUNetConfig`.

    Args:
        attends: an x for each level with attention, a dot for one without, the highest resolution first.
        efficient: whether they are those of Imagen's Efficient U-Net.
    """

    def names(direction, plain):
        with_attention = "EfficientCrossAttn" if efficient else "SimpleCrossAttn"
        kinds = {"x": f"{with_attention}{direction}Block2D", ".": f"{plain}Block2D"}
        return tuple(kinds[mark] for mark in (attends if direction == "Down" else attends[::-1]))

    return {
        "down_block_types": names("Down", "EfficientDown" if efficient else "ResnetDownsample"),
        "up_block_types": names("Up", "EfficientUp" if efficient else "ResnetUpsample"),
    }


def enlarging(config: PixelUNetConfig, sample_size: int, **changes) -> PixelUNetConfig:
    """The super-resolution stage of a base's configuration."""
    return replace(config, sample_size=sample_size, in_channels=6, class_embed_type="timestep", **changes)


# MinImagen: linear betas, epsilon, dynamic thresholding at a percentile of 0.9, no learned variance.
LINEAR = schedule_of_pixels(
    beta_schedule="linear",
    prediction_type="epsilon",
    kept={
        "_class_name": "DDPMScheduler",
        "variance_type": "fixed_small",
        "thresholding": True,
        "dynamic_thresholding_ratio": 0.9,
        "sample_max_value": 100.0,
    },
)
LINEAR_NOISING = replace(LINEAR, kept={"_class_name": "DDPMScheduler"})
ADAM = StageConfig(
    batch_size=2,
    learning_rate=1e-4,
    lr_schedule="constant",
    warmup_steps=0,
    weight_decay=0.0,
    gradient_clip=50.0,
    ema_decay=0.0,  # the weights themselves
)
MINIMAGEN_64 = PixelUNetConfig(
    sample_size=64,
    out_channels=3,
    block_out_channels=(128, 256, 512),
    layers_per_block=1,
    **levels(".xx"),
    attention_head_dim=64,
    cross_attention_dim=128,
    encoder_hid_dim=512,
    addition_embed_type=None,
    act_fn="silu",
    time_embedding_dim=256,
    norm_num_groups=8,
)
MINIMAGEN_128 = enlarging(
    MINIMAGEN_64, 128, layers_per_block=(1, 1, 2), **levels("..x", True), time_embedding_dim=512
)
MINIMAGEN_POKEMON = Preset(
    stages=(
        StagePreset(MINIMAGEN_64, LINEAR, replace(ADAM, share=0.6), recommended=DRAWING),
        StagePreset(
            MINIMAGEN_128,
            LINEAR,
            replace(ADAM, share=0.4),
            noising=LINEAR_NOISING,
            augment_level=200,
            recommended=ENLARGING,
        ),
    ),
    text_encoder=T5_SMALL,
    text_length=64,
    caption_dropout=0.15,
    max_minutes=120,
)


def _with_unets(preset, *configs, **changes):
    stages = tuple(replace(s, unet=config) for s, config in zip(preset.stages, configs, strict=True))
    return replace(preset, stages=stages, **changes)


TINY_64 = replace(
    MINIMAGEN_64,
    block_out_channels=(8, 16),
    layers_per_block=2,
    **levels(".."),
    attention_head_dim=8,
    cross_attention_dim=64,
    time_embedding_dim=None,
)
TINY_128 = enlarging(TINY_64, 128, layers_per_block=3, **levels("..", True), time_embedding_dim=64)
LARGE_64 = replace(MINIMAGEN_64, block_out_channels=(256, 512, 1024), time_embedding_dim=None)
LARGE_128 = enlarging(LARGE_64, 128, layers_per_block=(1, 1, 2), **levels("...", True))
STUDY = {"text_encoder": T5_BASE, "max_minutes": 480}

# Saharia et al. 2022, appendix F: 2 B parameters at 64, then Efficient U-Nets to 256 and 1024.
PAPER_64 = PixelUNetConfig(
    sample_size=64,
    block_out_channels=(512, 1024, 1536, 2048),
    layers_per_block=3,
    **levels(".xxx"),
    cross_attention_dim=2048,
    act_fn="silu",
    out_channels=3,
)
PAPER_256 = enlarging(
    PAPER_64,
    256,
    block_out_channels=(128, 256, 512, 1024),
    layers_per_block=(2, 4, 8, 8),
    **levels("...x", True),
    cross_attention_dim=512,
)
PAPER_1024 = replace(PAPER_256, sample_size=1024, only_cross_attention=True)
COSINE = replace(
    schedule_of_pixels(prediction_type="epsilon"), kept=LINEAR.kept | {"dynamic_thresholding_ratio": 0.995}
)
IMAGEN_PAPER = Preset(
    stages=tuple(
        StagePreset(
            unet,
            schedule,
            StageConfig(batch_size=2048, learning_rate=1e-4, warmup_steps=10_000, ema_decay=0.9999),
            noising=replace(COSINE, kept=NOISING.kept) if unet.class_embed_type else None,
            augment_level=100 if unet.class_embed_type else 0,
            crop=256 if unet is PAPER_1024 else 0,
            recommended=ENLARGING if unet.class_embed_type else DRAWING,
        )
        for unet, schedule in (
            (PAPER_64, COSINE),
            (PAPER_256, COSINE),
            (PAPER_1024, replace(COSINE, beta_schedule="linear")),
        )
    ),
    text_encoder=T5_XXL,
    text_length=128,
    max_minutes=4 * 24 * 60,
)

PRESETS = {
    "cascade-small": SMALL,
    "pixels-32": PIXELS_32,
    "cascade-emoji": PICTURES,
    "emoji-128": EMOJI,
    "cascade-pokemon": PICTURES,
    "cascade-pictures": PICTURES,
    "fine-tuning": FINE_TUNING,
    "minimagen-pokemon": MINIMAGEN_POKEMON,
    "minimagen-tiny": _with_unets(MINIMAGEN_POKEMON, TINY_64, TINY_128, **STUDY),
    "minimagen-large": _with_unets(MINIMAGEN_POKEMON, LARGE_64, LARGE_128, **STUDY),
    "imagen-paper": IMAGEN_PAPER,
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
