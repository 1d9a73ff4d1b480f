"""Text-to-image diffusion in TensorFlow and Keras 3.

    import sd_tf
    model = sd_tf.load("fashion-mnist")
    sd_tf.show(model.generate("a red dress", num_images=4, seed=0))
    data = sd_tf.open_data("folder:my-pictures")

The names below are imported when they are first used, so that `import sd_tf` is instant, prints
nothing and touches neither network nor disk.
"""

import os

# TensorFlow leaves oneDNN's kernels off on CPUs without AVX-512, where a training step with them takes
# two thirds of the time. It reads this when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"
_HOMES = {
    "CascadedDiffusion": "sd_tf.cascade.model",
    "CrossAttention": "sd_tf.training.finetuning_options",
    "GigaGAN": "sd_tf.gan.model",
    "InputError": "sd_tf.errors",
    "LatentDiffusion": "sd_tf.latent.model",
    "LoRA": "sd_tf.training.finetuning_options",
    "TextualInversion": "sd_tf.training.finetuning_options",
    "load": "sd_tf.families",
    "open_data": "sd_tf.data.open",
    "show": "sd_tf.showing",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'sd_tf' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
