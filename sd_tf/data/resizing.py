"""Pictures made smaller, as a stage learns them, and larger again, as the next stage is given them."""

import functools

import numpy as np


def shrunk(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mean of the pixels that become one.

    Args:
        images: uint8 or float (n, height, width, channels).
        size: (height, width) that divide those of the pictures.

    Returns:
        float32 (n, *size, channels).
    """
    n, height, width, channels = images.shape
    if (height, width) == tuple(size):
        return images.astype(np.float32)
    blocks = images.reshape(n, size[0], height // size[0], size[1], width // size[1], channels)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def enlarged(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation between the centres of the corner pixels, as DeepFloyd IF enlarges.

    Args:
        images: float32 (n, height, width, channels).
        size: (height, width) of the result.

    Returns:
        float32 (n, *size, channels).

    Reference: `torch.nn.functional.interpolate(mode="bilinear", align_corners=True)`, in diffusers'
    `IFSuperResolutionPipeline`.
    """
    rows, columns = (weights_of_pixels(*each) for each in zip(images.shape[1:3], size, strict=True))
    return np.einsum("Hh,nhwc,Ww->nHWc", rows, images, columns, optimize=True).astype(np.float32)


@functools.cache
def weights_of_pixels(small: int, large: int) -> np.ndarray:
    """float32 (large, small): how much of each small pixel is in each large one, along one side."""
    positions = np.linspace(0, small - 1, large)
    distances = np.abs(positions[:, None] - np.arange(small)[None, :])
    return np.maximum(0, 1 - distances).astype(np.float32)
