"""The configurations of the autoencoder and the UNet: each is its `config.json`."""

from dataclasses import dataclass

from sd_tf.config import kept
from sd_tf.errors import InputError


@dataclass(frozen=True)
class AutoencoderConfig:
    """`diffusers.AutoencoderKL`; the defaults are Stable Diffusion 1.x."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] | None = 512  # pixels
    scaling_factor: float = 0.18215
    shift_factor: float | None = None  # latents are (z - shift) * scale; None is 0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    kept: dict = kept()

    @property
    def downsampling(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class UNetConfig:
    """`diffusers.UNet2DConditionModel`; the defaults are Stable Diffusion 1.x.

    `attention_head_dim` is what diffusers' files call it and what diffusers means by it: the
    number of heads, for all levels or one for each.
    """

    sample_size: int | tuple[int, ...] | None = 64  # latents; a side, or height and width
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 768
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    kept: dict = kept()

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the network was trained on; 64 where nothing says."""
        size = self.sample_size or 64
        size = (size, size) if isinstance(size, int) else tuple(size)
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"sample_size is {self.sample_size!r}: give a side, or height and width")
        return size
