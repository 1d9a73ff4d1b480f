"""keras-cv's Stable Diffusion UNet, the retired one that Keras users know."""

import keras
import tensorflow as tf


def prepare(workload, variant):
    """(what runs the workload once, None)."""
    sizes = workload.sizes
    keras.config.set_dtype_policy("mixed_bfloat16" if "bfloat16" in variant else "float32")
    from keras_cv.src.models.stable_diffusion.diffusion_model import DiffusionModel

    side, tokens = sizes["latents"], sizes["tokens"]
    network = DiffusionModel(8 * side, 8 * side, tokens, download_weights=False)
    call = tf.function(network, jit_compile="XLA" in variant)
    inputs = {
        "latent": tf.random.normal((sizes["batch"], side, side, 4)),
        "timestep_embedding": tf.random.normal((sizes["batch"], 320)),
        "context": tf.random.normal((sizes["batch"], tokens, 768)),
    }
    return lambda: call(inputs).numpy(), None
