"""Presets: network sizes and training settings by name, with how long the bundled weights took and score."""

from dataclasses import dataclass, field, replace

from sd_tf.diffusion.schedules import ScheduleConfig
from sd_tf.errors import argument, unknown
from sd_tf.generation.settings import Settings
from sd_tf.latent.config import AutoencoderConfig, UNetConfig
from sd_tf.text.config import CLIPTextConfig, CLIPVisionConfig
from sd_tf.training.finetuning_options import LEARNING_RATES
from sd_tf.training.options import StageConfig


@dataclass(frozen=True)
class Preset:
    """Everything that a run needs except its data."""

    autoencoder: AutoencoderConfig
    unet: UNetConfig
    schedule: ScheduleConfig
    text: CLIPTextConfig  # of the CLIP that is trained if no pretrained one is given
    vision: CLIPVisionConfig
    vocab_size: int
    clip_stage: StageConfig
    autoencoder_stage: StageConfig
    diffusion_stage: StageConfig
    max_minutes: float
    learning_rates: dict[str, float] = field(default_factory=dict)  # by what is fine-tuned
    text_encoder: str | None = None  # a bundled CLIP
    perceptual_weight: float = 1.0  # in the autoencoder's loss
    timestep_sampling: str = "logit_normal"
    logit_mean: float = -0.5
    recommended: Settings = Settings()  # of the models that it makes
    cached_epochs: int = 4  # epochs of the data set whose latents are cached
    command: str = ""  # of the bundled weights, with their runtime and scores
    runtime: str = ""
    scores: str = ""


FASHION_MNIST = Preset(
    autoencoder=AutoencoderConfig(
        block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8, sample_size=32
    ),
    unet=UNetConfig(
        sample_size=8,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=128,
        norm_num_groups=16,
    ),
    schedule=ScheduleConfig(prediction_type="v_prediction", timestep_spacing="trailing"),
    text=CLIPTextConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
    ),
    vision=CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    ),
    vocab_size=1024,
    clip_stage=StageConfig(batch_size=128, learning_rate=1e-3, share=0.15),
    autoencoder_stage=StageConfig(batch_size=32, learning_rate=3e-3, share=0.4, optimizer="muon"),
    diffusion_stage=StageConfig(batch_size=64, learning_rate=5e-3, share=0.6, optimizer="muon"),
    max_minutes=55,
    # weights/fashion-mnist/generation_config.json
    recommended=Settings(guidance_interval=(0.35, 1.0), resamples=8),
    text_encoder="clip-mini",
    command="python -m sd_tf.train --dataset fashion_mnist --max-minutes 83 --save-dtype float16",
    runtime="83 minutes on 2 cores of an AMD EPYC 9005 with AVX-512, beside other work; clip-mini "
    "and perceptual-mini 7 minutes before, once",
    scores="Frechet distance 3.0 of 1,000 pictures, 1.4 of reconstructions, garments 0.969, in colours 0.958"
    ", colours 1.000: python -m sd_tf.evaluate --guidance-scale 3 --guidance-interval 0.4 1 --steps 25 "
    "--samples 1000 --tinted-samples 400",
)

NARROW = replace(  # a step takes 0.6 times as long; better than the wide one after 8 minutes on one core
    FASHION_MNIST,
    unet=replace(FASHION_MNIST.unet, block_out_channels=(48, 96)),
    command="",
    runtime="",
    scores="",
)

SMALL = replace(
    FASHION_MNIST,
    autoencoder=replace(FASHION_MNIST.autoencoder, block_out_channels=(16, 24, 40)),
    unet=replace(FASHION_MNIST.unet, block_out_channels=(32, 64), norm_num_groups=8),
    text=replace(
        FASHION_MNIST.text,
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=2,
    ),
    vision=replace(FASHION_MNIST.vision, projection_dim=64),
    text_encoder=None,
    command="python -m sd_tf.train --dataset fashion_mnist --preset fashion-mnist-small --max-minutes 18 "
    "--save-dtype float16",
    runtime="18 minutes, its CLIP included, on 2 cores of an AMD EPYC 9005 that did other work as well; "
    "perceptual-mini a minute before, once",
    scores="Frechet distance 5.4 of 500 pictures, 3.7 of reconstructions, garments 0.916, in colours 0.913, "
    "colours 1.000: python -m sd_tf.evaluate --model fashion-mnist-small --guidance-scale 1.5 --steps 25 "
    "--samples 500 --tinted-samples 160",
)

GARMENTS = replace(FASHION_MNIST, text_encoder=None, command="", runtime="", scores="")

PICTURES = replace(  # your own, a few hundred or thousand, 64 x 64
    FASHION_MNIST,
    autoencoder=AutoencoderConfig(
        block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8, sample_size=64
    ),
    unet=replace(
        FASHION_MNIST.unet,
        sample_size=16,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    text=replace(FASHION_MNIST.text, max_position_embeddings=32),
    vision=replace(FASHION_MNIST.vision, image_size=64),
    vocab_size=2048,
    clip_stage=replace(FASHION_MNIST.clip_stage, share=0.05),
    autoencoder_stage=replace(FASHION_MNIST.autoencoder_stage, share=0.3),
    perceptual_weight=0.2,
    cached_epochs=20,
    max_minutes=110,
    recommended=Settings(),
    text_encoder=None,
    command="",
    runtime="",
    scores="",
)

POKEMON = replace(
    PICTURES,
    command="python -m sd_tf.train --dataset pokemon --flip --max-minutes 98 --snapshots 8 "
    "--save-dtype float16",
    runtime="98 minutes on 2 cores of an AMD EPYC 9005 that did other work for most of them",
    scores="colours 0.82 (of real pictures 0.70), reconstructions 29.2 dB, copies of training pictures 0.28: "
    "python -m sd_tf.evaluate --dataset pokemon --guidance-scale 4",
)

EMOJI = replace(
    PICTURES,
    command="python -m sd_tf.train --dataset emoji --flip --max-minutes 62 --snapshots 8 "
    "--save-dtype float16",
    runtime="62 minutes on 2 cores of an AMD EPYC 9005 with AVX-512",
    scores="reconstructions 36.7 dB, no copies, 5.3 from the nearest training picture (those among "
    "themselves 7.5), colours of hearts 0.75 (of real pictures 0.74): python -m sd_tf.evaluate --dataset "
    'emoji --model runs/emoji --colour-prompt "a 3d icon of {} heart" --guidance-scale 3',
)

FINE_TUNING = replace(  # of a model, whose networks replace the preset's
    PICTURES,
    diffusion_stage=StageConfig(batch_size=16, learning_rate=1e-5, lr_schedule="constant"),
    learning_rates=LEARNING_RATES,
    timestep_sampling="uniform",
    max_minutes=10,
)

PRESETS = {
    "fashion-mnist": FASHION_MNIST,
    "fashion-mnist-narrow": NARROW,
    "fashion-mnist-small": SMALL,
    "garments": GARMENTS,
    "pictures": PICTURES,
    "pokemon-64": POKEMON,
    "emoji-64": EMOJI,
    "fine-tuning": FINE_TUNING,
}
PRESET_OF_DATASET = {
    "fashion_mnist": "fashion-mnist",
    "garments": "garments",
    "pokemon": "pokemon-64",
    "emoji": "emoji-64",
}


def preset_of(dataset: str) -> str:
    """The name of a data set's default preset."""
    return PRESET_OF_DATASET.get(dataset, "pictures")


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PRESETS:
        raise unknown(argument("preset"), name, PRESETS)
    return PRESETS[name]
