"""CLIP guidance (GLIDE, Nichol et al. 2021, section 2.3): a CLIP makes pictures more like their prompts.

GLIDE's CLIP was trained on noised pictures. An ordinary CLIP sees the decoded x0 instead, as in Crowson's
notebooks and diffusers' `clip_guided_stable_diffusion`. The gradient goes through the CLIP's image tower, the
decoder and the UNet.
"""

from sd_tf.diffusion.predictions import to_prediction
from sd_tf.errors import naming
from sd_tf.generation.checks import check_number
from sd_tf.text.prompt_syntax import text_of


class CLIPGuidance:
    """A CLIP that guides sampling: `model.generate(prompt, clip_guidance=CLIPGuidance("clip-mini"))`.

    A step takes three to four times as long with it.

    Args:
        clip: a bundled name, a folder of transformers' `CLIPModel`, or a hub id.
        scale: multiplies the gradient of the CLIP's logit; with 1 the logit is treated as a log probability.

    Raises:
        InputError: there is no such CLIP, or `scale` is no number from 0 to 1000.
    """

    def __init__(self, clip="clip-mini", scale=1.0):
        check_number("scale of the CLIP guidance", scale, 0, 1000)
        from sd_tf.checkpoints.clip import load_clip
        from sd_tf.checkpoints.tokenizers import load_tokenizer

        self.clip, self.scale = load_clip(clip), scale
        self.tokenizer = load_tokenizer(clip, self.clip.text_config.max_position_embeddings)
        with naming(clip):
            self.tokenizer.check_fits(self.clip.text_config)
        self._gradient = (None, None, None)  # networks, the shape of latents, `_logits_gradient` of them

    def gradients(self, model, prompts):
        """The gradients that `sd_tf.diffusion.guidance.classifier_guidance` takes.

        Args:
            model: a `LatentDiffusion`.
            prompts: one for each picture.

        Returns:
            `of(places, context)` -> `gradient(x, level)`: for the pictures at these places, with the context
            float32 (n, tokens, width) that the UNet is given, the gradient of their logits by x, like x.
        """
        import tensorflow as tf

        plain = [text_of(prompt) for prompt in prompts]

        def of(places, context):
            texts = self.clip.text_features(self.tokenizer([plain[place] for place in places]))

            def gradient(x, level):
                gradient_of = self._gradient_for(model, x.shape[1:])
                timesteps = tf.fill([len(x)], float(level.t))
                numbers = (tf.constant(number, tf.float32) for number in (level.signal, level.noise))
                return gradient_of(tf.constant(x), timesteps, *numbers, tf.constant(context), texts).numpy()

            return gradient

        return of

    def _gradient_for(self, model, shape):
        """`_logits_gradient` for a model and latents of this shape, kept for the next batch."""
        parts = (model.unet, model.autoencoder, model.schedule.config.prediction_type)
        if self._gradient[:2] != (parts, shape):
            self._gradient = parts, shape, _logits_gradient(self.clip, *parts)
        return self._gradient[2]


def _logits_gradient(clip, unet, autoencoder, prediction_type):
    """`gradient(x, timesteps, signal, noise, context, texts)`: that of the logits of the decoded x0, by x."""
    import tensorflow as tf

    sharpness = tf.exp(tf.cast(clip.logit_scale, "float32"))

    @tf.function(autograph=False, reduce_retracing=True)
    def gradient(x, timesteps, signal, noise, context, texts):
        with tf.GradientTape() as tape:
            tape.watch(x)
            x0 = to_prediction(unet(x, timesteps, context), x, signal, noise, prediction_type).x0
            images = clip.preprocess(autoencoder.decode(x0))
            logits = sharpness * tf.reduce_sum(clip.image_features(images) * texts, axis=1)
        return tape.gradient(logits, x)

    return gradient
