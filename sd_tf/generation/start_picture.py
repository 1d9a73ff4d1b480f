"""Image-to-image and inpainting, of no family: what drawing starts from, and what of it stays."""

import warnings

import numpy as np

from sd_tf.diffusion.editing import inpainting, levels_for_strength, noised
from sd_tf.generation.pictures import checked_image, checked_mask, latent_mask


class StartPicture:
    """Image-to-image and inpainting: the picture to start from, and the mask.

    Args:
        request: the `Request`.
        image: a picture, or one for each prompt, see `sd_tf.generation.pictures.checked_image`.
        mask: where it may change, see `sd_tf.generation.pictures.checked_mask`; None for everywhere.
        strength: 0 to 1, the share of the steps that is run.
        encode: `encode(images, batch_size)`: uint8 (n, height, width, 3) -> what is drawn in, float32
            (n, h, w, channels): latents, or the pixels themselves.
        multiple, most, size: of its sides, see `checked_image`.

    Attributes:
        shape: shape (h, w, channels) of what is drawn in.

    Raises:
        InputError: the picture or the mask has the wrong size, type or range.
    """

    def __init__(self, request, image, mask, strength, encode, multiple, most, size=(None, None)):
        number = len(request.prompts)
        self._images = checked_image(image, number, multiple, most, size)
        self._mask = None if mask is None else checked_mask(mask, self._images, number)
        self._request, self._strength = request, strength
        latents = encode(self._images, request.batch_size)
        self.shape = latents.shape[1:]
        self._latents = request.for_each_picture(latents)  # (pictures, h, w, channels)
        if mask is not None:
            latents_mask = latent_mask(self._mask, self._images.shape[1] // self.shape[0])
            self._latent_mask = request.for_each_picture(latents_mask)

    @property
    def has_mask(self) -> bool:
        """Whether a part of the picture stays."""
        return self._mask is not None

    def levels(self, levels, steps):
        """Those of all levels that `strength` leaves."""
        left = levels_for_strength(levels, self._strength)
        if self._strength > 0 and len(left) == 1:
            warnings.warn(
                f"strength {self._strength:g} of {steps} steps is less than one step: the picture is not "
                "changed",
                stacklevel=4,
            )
        return left

    def start(self, noise, places, levels):
        """The latents that sampling starts from: the picture's, with noise of the first level."""
        latents = self._latents[places]
        if len(levels) == 1:
            return latents
        starts = noised(latents, noise, levels[0])
        if self._mask is not None and self._strength == 1:  # keep nothing of the masked content
            return np.where(self._latent_mask[places], noise, starts)
        return starts

    def inpaint(self, denoise, places, condition):
        """Wraps a denoiser of the pictures at `places`, so that they change only inside the mask."""
        return inpainting(denoise, self._latents[places], self._latent_mask[places])

    def keep(self, latents, places):
        """Drawn latents inside the mask, the picture's outside: the last level may have some noise."""
        mask = self._latent_mask[places]
        return mask * latents + (1 - mask) * self._latents[places]

    def paste(self, drawn):
        """Drawn pixels inside the mask, exactly the picture's outside."""
        images, mask = (self._request.for_each_picture(each) for each in (self._images, self._mask))
        return np.where(mask, drawn, images)
