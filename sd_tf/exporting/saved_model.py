"""A model as one SavedModel, which draws with TensorFlow alone."""

import numpy as np
import tensorflow as tf
from tokenizers import Tokenizer as Rows

from sd_tf.data.resizing import weights_of_pixels
from sd_tf.diffusion.levels import Level
from sd_tf.diffusion.predictions import split_variance, to_prediction
from sd_tf.exporting.parts import parts_of
from sd_tf.exporting.prompts import GraphTokenizer
from sd_tf.exporting.sampling import inference_timesteps, normals, rates
from sd_tf.generation.request import PICTURE_NOISE
from sd_tf.text.prompts import MOST_PARTS
from sd_tf.text.tokenizer import Tokenizer

ROWS = "tokenizer.json"  # beside a SavedModel that is given token ids


class GraphModel(tf.Module):
    """Prompts to PNG files in one graph: `generate` with DDIM, for any number of steps.

    The same prompt, seed, steps and scale give the picture that `generate` draws, but for rounding. Weights
    of words, "(red:1.3)", are text here. A cascade thresholds and augments as it does by itself.

    Args:
        model: a `LatentDiffusion` or a `CascadedDiffusion`; in the precision that its networks compute in.
            Where its text encoder is CLIP's, the graph reads prompts; T5's and BERT's token ids are inputs.
    """

    def __init__(self, model):
        super().__init__()
        parts = parts_of(model)
        self.texts = (Prompts if isinstance(parts.tokenizer, Tokenizer) else TokenRows)(parts)
        self.stages = [GraphStage(stage) for stage in parts.stages]
        self.decode = _function(parts.decode) if parts.decode is not None else lambda images: images
        self.settings = ["steps", "guidance_scale"]
        if len(self.stages) > 1:
            self.settings += ["sr_steps", "sr_guidance_scale"]

    def save(self, folder):
        """Writes the SavedModel: "with_negative_prompt" is `draw`, "serving_default" has an empty one."""
        texts, negatives = self.texts.specs(), self.texts.specs("negative_")
        seed = tf.TensorSpec(None, tf.int32, "seed")
        settings = [
            tf.TensorSpec([], tf.int32 if name.endswith("steps") else tf.float32, name)
            for name in self.settings
        ]
        number = len(texts)

        def plain(*given):
            texts = given[:number]
            return self.draw(texts, self.texts.empty(texts), *given[number:])

        def leaning(*given):
            return self.draw(given[:number], given[number : 2 * number], *given[2 * number :])

        graphs = {
            "serving_default": tf.function(plain, [*texts, seed, *settings], autograph=False),
            "with_negative_prompt": tf.function(
                leaning, [*texts, *negatives, seed, *settings], autograph=False
            ),
        }
        signatures = {name: graph.get_concrete_function() for name, graph in graphs.items()}
        self.weights = signatures["serving_default"].variables  # the encoder's are not among them
        tf.saved_model.save(self, str(folder), signatures)
        self.texts.save(folder)

    def draw(self, texts, negative_texts, seed, *settings):
        """Draws a picture of each text.

        Args:
            texts, negative_texts: tensors of n rows, as `self.texts.specs()` says.
            seed: int32, one for all, (), or one for each, (n,): 0 or more.
            settings: steps, int32 (), 1 to the schedule's timesteps; guidance scale, float32 (), 0 or more;
                and of a cascade the same of its later stages.

        Returns:
            {"png": string (n,), each a file}.
        """
        checks = [tf.debugging.assert_non_negative(seed, "seed is below 0")]
        for number, (name, value) in enumerate(zip(self.settings, settings, strict=True)):
            if name.endswith("steps"):
                of_stages = self.stages[1:] if number else self.stages[:1]
                most = min(len(stage.schedule.alphas_cumprod) for stage in of_stages)
                above = f"{name} is above {most}, the schedule's timesteps"
                checks.append(tf.debugging.assert_positive(value, f"{name} is below 1"))
                checks.append(tf.debugging.assert_less_equal(value, most, above))
            else:
                checks.append(tf.debugging.assert_non_negative(value, f"{name} is below 0"))
        with tf.control_dependencies(checks):
            seeds = tf.broadcast_to(seed, tf.shape(texts[0])[:1])
            settings = [tf.identity(value) for value in settings]

        def draw(context, places):
            return self._draw(context, tf.gather(seeds, places), settings)

        return {"png": self.texts.drawn(texts, negative_texts, draw)}

    def _draw(self, context, seeds, settings):
        """Context (2 n, tokens, width), that of negative prompts first -> n files."""
        pictures = None
        for number, stage in enumerate(self.stages):
            steps, guidance_scale = settings[2 * min(number, 1) :][:2]
            drawn = stage.draw(context, seeds, steps, guidance_scale, pictures)
            images = tf.cast(self.decode(drawn), tf.float32)
            pictures = tf.cast(tf.clip_by_value(tf.round((images + 1.0) * 127.5), 0, 255), tf.uint8)
        return tf.map_fn(tf.io.encode_png, pictures, fn_output_signature=tf.string)


class GraphStage:
    """DDIM with guidance, as operations.

    Args:
        stage: a `sd_tf.exporting.parts.Stage`.
    """

    def __init__(self, stage):
        self.schedule, self._stage, self._denoise = stage.schedule, stage, _function(stage.network)

    def draw(self, context, seeds, steps, guidance_scale, smaller=None):
        """Latents or pixels, float32 (n, h, w, channels).

        Args:
            context: of negative prompts and then of prompts, (2 n, tokens, width).
            seeds: int32 (n,).
            steps, guidance_scale: int32 () and float32 ().
            smaller: the pictures to enlarge, uint8 (n, h, w, 3), or None.
        """
        stage, number = self._stage, tf.shape(seeds)[0]
        # A scale of 1 follows prompts alone, which takes half of the time.
        copies = tf.where(guidance_scale == 1.0, 1, 2)
        context = context[(2 - copies) * number :]
        timesteps = inference_timesteps(stage.schedule.config, steps)
        signals, noises = rates(stage.schedule, timesteps)
        low_res, levels = [], []
        if smaller is not None:
            low_res = [self._enlarged(smaller, seeds)]
            levels = [tf.fill([copies * number], tf.constant(stage.noising.t, tf.float32))]

        def denoise(x, level):
            given = tf.tile(tf.concat([x, *low_res], -1), [copies, 1, 1, 1])
            output = self._denoise(given, tf.fill([copies * number], level.t), context, *levels)
            output, _ = split_variance(tf.cast(output, tf.float32), x)  # which DDIM does not need
            negative, positive = output[:number], output[-number:]
            output = negative + guidance_scale * (positive - negative)
            kind = stage.schedule.config.prediction_type
            return to_prediction(output, x, level.signal, level.noise, kind)

        denoise_in_range = stage.thresholding.applied_to(denoise)

        def step(i, x):
            level = Level(tf.cast(timesteps[i], tf.float32), signals[i], noises[i])
            found = denoise_in_range(x, level)
            return i + 1, signals[i + 1] * found.x0 + noises[i + 1] * found.noise

        noise = normals((PICTURE_NOISE, stage.first_draw), seeds, stage.shape)
        _, x = tf.while_loop(
            lambda i, x: i < steps,
            step,
            [0, noise],
            [tf.TensorShape([]), tf.TensorShape([None, *stage.shape])],
            parallel_iterations=1,
        )
        return x

    def _enlarged(self, smaller, seeds):
        """As `sd_tf.data.resizing.enlarged`, and with noise."""
        stage, level = self._stage, self._stage.noising
        rows, columns = (
            weights_of_pixels(*each) for each in zip(stage.small_size, stage.shape[:2], strict=True)
        )
        clean = tf.cast(smaller, tf.float32) / 127.5 - 1.0
        clean = tf.einsum("Hh,nhwc,Ww->nHWc", rows, clean, columns)
        noise = normals((PICTURE_NOISE, stage.noising_draw), seeds, stage.shape)
        return level.signal * clean + level.noise * noise


class Prompts(tf.Module):
    """Reads prompts by CLIP's text tower, long ones in parts."""

    def __init__(self, parts):
        super().__init__()
        self.tokenizer, self._encode = GraphTokenizer(parts.tokenizer), _function(parts.encode)

    def specs(self, prefix=""):
        """What is given: strings."""
        return [tf.TensorSpec([None], tf.string, f"{prefix}prompt")]

    def empty(self, texts):
        """As many without a word."""
        return [tf.fill(tf.shape(texts[0]), "")]

    def save(self, folder):
        """Nothing: the graph has all."""

    def drawn(self, texts, negative_texts, draw):
        """Files, string (n,): those of `draw(context, places)`."""
        [prompt], [negative_prompt] = texts, negative_texts
        both = tf.concat([negative_prompt, prompt], 0)
        ids = self.tokenizer.ids(both)
        numbers = self.tokenizer.numbers_of_parts(ids)
        numbers = tf.reduce_max(tf.reshape(numbers, [2, -1]), axis=0)  # of each pair
        files = tf.fill(tf.shape(prompt), b"")

        def draw_those_of(parts, files):
            """Pictures whose prompts have so many parts are drawn at once."""
            places = tf.where(numbers == parts)[:, 0]
            of_both = tf.concat([places, places + tf.shape(prompt, tf.int64)[0]], 0)

            def drawn():
                rows = self.tokenizer.rows(tf.gather(ids, of_both), parts)
                return tf.tensor_scatter_nd_update(
                    files, places[:, tf.newaxis], draw(self._context(rows), places)
                )

            return parts + 1, tf.cond(tf.size(places) > 0, drawn, lambda: files)

        _, files = tf.while_loop(
            lambda parts, files: parts <= MOST_PARTS, draw_those_of, [1, files], parallel_iterations=1
        )
        return files

    def _context(self, rows):
        """Token ids (2 n, parts, length) -> (2 n, tokens, width)."""
        states = self._encode(tf.reshape(rows, [-1, rows.shape[2]]))
        length = tf.shape(rows)[1] * rows.shape[2]
        return tf.reshape(states, [tf.shape(rows)[0], length, states.shape[-1]])


class TokenRows(tf.Module):
    """Reads rows of token ids and their masks by T5's encoder or BERT.

    No operations of TensorFlow alone make their tokens, so `tokenizer.json` is written beside the graph.
    """

    def __init__(self, parts):
        super().__init__()
        self._encode, self._save = _function(parts.encode), parts.tokenizer.save_joint
        self.length = parts.tokenizer.max_length
        self._empty = [each.astype(np.int32) for each in parts.tokenizer([""])]

    def specs(self, prefix=""):
        """What is given: token ids and their mask, which is 0 at padding."""
        rows = [None, self.length]
        return [tf.TensorSpec(rows, tf.int32, f"{prefix}{name}") for name in ("ids", "mask")]

    def empty(self, texts):
        """As many without a word."""
        return [tf.repeat(each, tf.shape(texts[0])[0], axis=0) for each in self._empty]

    def save(self, folder):
        """The tokenizer, which cuts and pads."""
        self._save(folder / ROWS, in_rows=True)

    def drawn(self, texts, negative_texts, draw):
        """Files, string (n,): those of `draw(context, places)`."""
        ids, mask = (tf.concat(both, 0) for both in zip(negative_texts, texts, strict=True))
        return draw(self._encode(ids, mask), tf.range(tf.shape(texts[0])[0]))


def _function(network):
    """As a function alone, so that variables are not written a second time, as a Keras model's."""
    return lambda *inputs: network.function(*inputs)


def served(folder, steps, seed=0, guidance_scale=3.0, **settings):
    """What was written, as a function of a prompt: uint8 (height, width, 3).

    `settings` are those of a cascade, `sr_steps` and `sr_guidance_scale`.
    """
    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    settings |= {"seed": seed, "steps": steps, "guidance_scale": guidance_scale}
    settings = {name: tf.constant(value) for name, value in settings.items()}
    takes_prompts = "prompt" in serve.structured_input_signature[1]
    tokenizer = None if takes_prompts else Rows.from_file(str(folder / ROWS))

    def generate(prompt):
        if takes_prompts:
            texts = {"prompt": tf.constant([prompt])}
        else:
            row = tokenizer.encode(prompt)
            texts = {"ids": tf.constant([row.ids]), "mask": tf.constant([row.attention_mask])}
        [png] = serve(**texts, **settings)["png"]
        return tf.io.decode_png(png).numpy()

    return generate
