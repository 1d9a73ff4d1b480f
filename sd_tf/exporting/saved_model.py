"""A model as one SavedModel, which draws with TensorFlow alone."""

import tensorflow as tf

from sd_tf.diffusion.predictions import to_prediction
from sd_tf.exporting.prompts import GraphTokenizer
from sd_tf.exporting.sampling import inference_timesteps, normals, rates
from sd_tf.generation.request import PICTURE_NOISE
from sd_tf.text.prompts import MOST_PARTS


class GraphModel(tf.Module):
    """Prompts to PNG files in one graph: `LatentDiffusion.generate` with DDIM, for any number of steps.

    The same prompt, seed, steps and scale give the picture that `generate` draws, but for rounding. Weights
    of words, "(red:1.3)", are text here.

    Args:
        model: a `LatentDiffusion`; in the precision that its networks compute in.
    """

    def __init__(self, model):
        super().__init__()
        self.tokenizer = GraphTokenizer(model.tokenizer)
        # As functions alone, so that variables are not written a second time, as a Keras model's.
        self.networks = {
            name: lambda *inputs, function=function: function(*inputs)
            for name, (_, function, _) in model.engines.networks.items()
        }
        self.schedule = model.schedule
        self.shape = (*model.unet.config.latent_size, model.unet.config.in_channels)

    def save(self, folder):
        """Writes the SavedModel: "with_negative_prompt" is `draw`, "serving_default" has an empty one."""
        prompt, number = tf.TensorSpec([None], tf.string, "prompt"), tf.TensorSpec([], tf.int32, "steps")
        seed = tf.TensorSpec(None, tf.int32, "seed")
        scale = tf.TensorSpec([], tf.float32, "guidance_scale")
        negative = tf.TensorSpec([None], tf.string, "negative_prompt")

        def draw(prompt, seed, steps, guidance_scale):
            return self.draw(prompt, tf.fill(tf.shape(prompt), ""), seed, steps, guidance_scale)

        plain = tf.function(draw, [prompt, seed, number, scale], autograph=False)
        leaning = tf.function(self.draw, [prompt, negative, seed, number, scale], autograph=False)
        signatures = {
            "serving_default": plain.get_concrete_function(),
            "with_negative_prompt": leaning.get_concrete_function(),
        }
        self.weights = signatures["serving_default"].variables  # the encoder's are not among them
        tf.saved_model.save(self, str(folder), signatures)

    def draw(self, prompt, negative_prompt, seed, steps, guidance_scale):
        """Draws a picture of each prompt.

        Args:
            prompt: string (n,).
            negative_prompt: string (n,).
            seed: int32, one for all, (), or one for each, (n,): 0 or more.
            steps: int32 (), 1 to the schedule's timesteps.
            guidance_scale: float32 (), 0 or more.

        Returns:
            {"png": string (n,), each a file}.
        """
        most = len(self.schedule.alphas_cumprod)
        checks = [
            tf.debugging.assert_positive(steps, "steps is below 1"),
            tf.debugging.assert_less_equal(steps, most, f"steps is above {most}, the schedule's timesteps"),
            tf.debugging.assert_non_negative(seed, "seed is below 0"),
            tf.debugging.assert_non_negative(guidance_scale, "guidance_scale is below 0"),
        ]
        with tf.control_dependencies(checks):
            seeds, steps = tf.broadcast_to(seed, tf.shape(prompt)), tf.identity(steps)
        both = tf.concat([negative_prompt, prompt], 0)
        ids = self.tokenizer.ids(both)
        numbers = self.tokenizer.numbers_of_parts(ids)
        numbers = tf.reduce_max(tf.reshape(numbers, [2, -1]), axis=0)  # of each pair
        files = tf.fill(tf.shape(prompt), b"")

        def draw_those_of(parts, files):
            """Pictures whose prompts have so many parts are drawn at once."""
            places = tf.where(numbers == parts)[:, 0]
            of_both = tf.concat([places, places + tf.shape(prompt, tf.int64)[0]], 0)

            def draw():
                rows = self.tokenizer.rows(tf.gather(ids, of_both), parts)
                drawn = self._draw(rows, tf.gather(seeds, places), steps, guidance_scale)
                return tf.tensor_scatter_nd_update(files, places[:, tf.newaxis], drawn)

            return parts + 1, tf.cond(tf.size(places) > 0, draw, lambda: files)

        _, files = tf.while_loop(
            lambda parts, files: parts <= MOST_PARTS, draw_those_of, [1, files], parallel_iterations=1
        )
        return {"png": files}

    def _draw(self, rows, seeds, steps, guidance_scale):
        """Token ids (2 n, parts, length), those of negative prompts first -> n files."""
        length = tf.shape(rows)[1] * rows.shape[2]
        states = self.networks["encode"](tf.reshape(rows, [-1, rows.shape[2]]))
        context = tf.reshape(states, [tf.shape(rows)[0], length, states.shape[-1]])
        timesteps = inference_timesteps(self.schedule.config, steps)
        signals, noises = rates(self.schedule, timesteps)

        def step(i, x):
            t = tf.fill([2 * tf.shape(x)[0]], tf.cast(timesteps[i], tf.float32))
            output = self.networks["denoise"](tf.concat([x, x], 0), t, context)
            negative, positive = tf.split(tf.cast(output, tf.float32), 2)
            output = negative + guidance_scale * (positive - negative)
            found = to_prediction(output, x, signals[i], noises[i], self.schedule.config.prediction_type)
            return i + 1, signals[i + 1] * found.x0 + noises[i + 1] * found.noise

        noise = normals((PICTURE_NOISE, 0), seeds, self.shape)
        _, x = tf.while_loop(lambda i, x: i < steps, step, [0, noise], parallel_iterations=1)
        images = tf.cast(self.networks["decode"](x), tf.float32)
        images = tf.cast(tf.clip_by_value(tf.round((images + 1.0) * 127.5), 0, 255), tf.uint8)
        return tf.map_fn(tf.io.encode_png, images, fn_output_signature=tf.string)


def served(folder, steps, seed=0, guidance_scale=3.0):
    """What was written, as a function of a prompt: uint8 (height, width, 3)."""
    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    settings = {"seed": seed, "steps": steps, "guidance_scale": guidance_scale}
    settings = {name: tf.constant(value) for name, value in settings.items()}

    def generate(prompt):
        [png] = serve(prompt=tf.constant([prompt]), **settings)["png"]
        return tf.io.decode_png(png).numpy()

    return generate
