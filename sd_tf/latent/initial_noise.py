"""Initial noise optimisation (InitNO; Guo et al. 2024): noise in which the UNet attends to every word.

Before sampling, the attention maps of one UNet call on the noise are read. If the UNet attends to a word
nowhere, or to two words in the same place, the picture will lack one of them. The mean and the deviation of
the noise are optimised until every word is attended to. A KL term keeps them near a standard normal's.
"""

import numpy as np

from sd_tf.errors import InputError, shown
from sd_tf.generation.checks import check_number, check_whole
from sd_tf.nn.attention import recorded_attention
from sd_tf.seeding import normals
from sd_tf.text.prompt_syntax import text_of

FINEST = 16  # the most positions along a side of the attention maps that are read, as in the paper
SHARPNESS = (
    100.0  # multiplies a map before the softmax over words, as in Attend-and-Excite (Chefer et al. 2023)
)
KL_WEIGHT = 500.0
LEARNING_RATE = 1e-2
STOP_WORDS = ("a", "an", "the", "of", "in", "on", "at", "and", "or", "with", "to", "by", "for")
ROUNDS_NOISE = -1  # names the stream of random numbers that further rounds start from


class InitialNoise:
    """Chooses the noise that pictures start from: `model.generate(prompt, initial_noise=InitialNoise())`.

    Args:
        words: the words of the prompt that must be attended to; None for all but articles and prepositions.
        steps: of Adam, in each round. A step takes as long as three or four sampling steps.
        rounds: how many times it starts from new noise, if words are still not attended to.
        unseen: the largest acceptable 1 - (the maximum of a word's attention map), 0 to 1.
        mixed: the largest acceptable overlap of two words' places, 0 (apart) to 1 (the same).

    Raises:
        InputError: one is out of range.
    """

    def __init__(self, words=None, steps=10, rounds=5, unseen=0.2, mixed=0.3):
        check_whole("steps of the initial noise", steps, 1, 1000)
        check_whole("rounds of the initial noise", rounds, 1, 100)
        if words is not None and not (isinstance(words, (list, tuple)) and all(map(_is_word, words))):
            raise InputError(
                f"words of the initial noise is {words!r}: give a list of words, such as ['dress']"
            )
        check_number("unseen", unseen, 0, 1)
        check_number("mixed", mixed, 0, 1)
        self.words = None if words is None else [word.lower() for word in words]
        self.steps, self.rounds, self.unseen, self.mixed = steps, rounds, unseen, mixed
        self._measure = (None, None, None)  # a UNet, the shape of its latents, `_attention_measure` of it

    def chosen(self, model, prompts, contexts, seeds, noise, level):
        """Optimises initial noise.

        Args:
            model: a `LatentDiffusion`.
            prompts: one for each picture.
            contexts: their states, float32 (n, tokens, width).
            seeds: int (n,), from which further rounds draw noise.
            noise: the initial noise, standard normal (n, h, w, channels).
            level: the `Level` that sampling starts from.

        Returns:
            Like `noise`: for each picture the best that was found.
        """
        import tensorflow as tf

        unet, shape = model.unet, noise.shape[1:]
        if self._measure[0] is not unet or self._measure[1] != shape:
            self._measure = unet, shape, _attention_measure(unet)
        measure = self._measure[2]
        words, readable = self._places(model.tokenizer, prompts, contexts.shape[1])
        timesteps = np.full(len(noise), level.t, "float32")
        given = [tf.constant(each) for each in (timesteps, contexts, words, readable)]
        best, least = np.array(noise), np.full(len(noise), np.inf)
        for turn in range(self.rounds):
            if turn:
                noise = normals((ROUNDS_NOISE, turn), seeds, shape)
            changes = np.zeros((2, *noise.shape), "float32")  # its mean, the logarithm of its deviation
            first, second = np.zeros_like(changes), np.zeros_like(changes)
            for step in range(1, self.steps + 1):
                tried, unseen, mixed, gradient = measure(noise, changes, *given)
                missing = np.maximum(unseen - self.unseen, 0) + np.maximum(mixed - self.mixed, 0)
                better = missing < least
                best[better], least = tried.numpy()[better], np.where(better, missing, least)
                if not least.any():
                    return best
                # Kingma & Ba 2015, algorithm 1.
                first = 0.9 * first + 0.1 * gradient.numpy()
                second = 0.999 * second + 0.001 * gradient.numpy() ** 2
                deviation = np.sqrt(second / (1 - 0.999**step)) + 1e-8
                changes -= LEARNING_RATE * first / (1 - 0.9**step) / deviation
        return best

    def _places(self, tokenizer, prompts, length):
        """Which tokens belong to words that must be attended to, and which to words at all.

        Returns:
            float32 (n, words, tokens): for each word equal weights of its tokens, which sum to 1, and rows of
            zeros for prompts of fewer words; bool (n, tokens): the tokens of all words.
        """
        room, first = tokenizer.room, tokenizer.first
        parts, around = length // tokenizer.max_length, tokenizer.max_length - room
        found = [self._words(tokenizer, prompt, parts * room) for prompt in prompts]
        most = max(1, *(len(words) for words, _ in found))
        shares = np.zeros((len(prompts), most, length), "float32")
        readable = np.zeros((len(prompts), length), bool)
        for i, (words, number) in enumerate(found):
            # Each part starts and ends with tokens that belong to no word.
            where = [place + first + around * (place // room) for place in range(min(number, parts * room))]
            readable[i, where] = True
            for row, places in enumerate(words):
                shares[i, row, [where[place] for place in places]] = 1 / len(places)
        return shares, readable

    def _words(self, tokenizer, prompt, most):
        """The places, among a prompt's `most` tokens, of each word to attend to; the number of tokens."""
        place, found = 0, {}
        for word in text_of(prompt).split():
            number, plain = len(tokenizer.ids(word)), word.strip(",.;:!?'\"()").lower()
            wanted = plain not in STOP_WORDS if self.words is None else plain in self.words
            if plain and wanted:
                found.setdefault(plain, range(place, place + number))
            place += number
        for word in self.words or ():
            if word not in found:
                raise InputError(
                    f"the prompt {shown(prompt)} lacks {word!r}, a word of initial_noise: add it"
                )
        return [places for places in found.values() if places.stop <= most], place


def _is_word(word):
    return isinstance(word, str) and word.strip()


def _attention_measure(unet):
    """`measure(noise, changes, timesteps, contexts, words, readable)` -> (the changed noise, `unseen` of its
    words (n,), `mixed` (n,), the gradient of the loss by the changes)."""

    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)
    def measure(noise, changes, timesteps, contexts, words, readable):
        there = tf.reduce_any(words > 0, axis=2)
        with tf.GradientTape() as tape:
            tape.watch(changes)
            mean, log_deviation = changes[0], changes[1]
            tried = mean + tf.exp(log_deviation) * noise
            with recorded_attention() as recorded:
                unet(tried, timesteps, contexts)
            of_words, of_places = _maps(recorded, readable, words)
            unseen = 1 - tf.reduce_min(tf.where(there, tf.reduce_max(of_words, axis=2), 1.0), axis=1)
            mixed = _overlap(of_words, of_places, there)
            from_normal = mean**2 + tf.exp(2 * log_deviation) - 2 * log_deviation - 1
            kl = 0.5 * tf.reduce_mean(from_normal, axis=[1, 2, 3])
            loss = tf.reduce_sum(unseen + mixed + KL_WEIGHT * kl)  # a sum: pictures are independent
        return tried, unseen, mixed, tape.gradient(loss, changes)

    return measure


def _maps(recorded, readable, words):
    """Attention maps, means over the heads and layers of the finest resolution that is read.

    Returns:
        Of cross-attention (n, words, positions), and of self-attention (n, positions, positions).
    """
    import tensorflow as tf

    numbers = {weights.shape[2] for weights in recorded.cross_attention}
    positions = max([number for number in numbers if number <= FINEST**2], default=min(numbers))

    def mean(all_weights):
        chosen = [weights for weights in all_weights if weights.shape[2] == positions]
        return tf.reduce_mean(tf.stack([tf.reduce_mean(weights, axis=1) for weights in chosen]), axis=0)

    of_context = mean(recorded.cross_attention)  # (n, positions, tokens)
    of_context = tf.where(readable[:, tf.newaxis], SHARPNESS * of_context, -1e9)
    of_words = tf.einsum("npt,nwt->nwp", tf.nn.softmax(of_context), words)
    return of_words, mean(recorded.self_attention)


def _overlap(of_words, of_places, there):
    """The mean overlap of the self-attention around the words' maxima, over pairs of words: (n,), 0 to 1."""
    import tensorflow as tf

    centres = tf.argmax(of_words, axis=2)
    regions = tf.gather(of_places, centres, batch_dims=1)  # (n, words, positions)
    shared = tf.reduce_sum(tf.minimum(regions[:, :, tf.newaxis], regions[:, tf.newaxis]), axis=3)
    whole = 0.5 * tf.reduce_sum(regions[:, :, tf.newaxis] + regions[:, tf.newaxis], axis=3)
    pairs = (there[:, :, tf.newaxis] & there[:, tf.newaxis]) & ~tf.eye(tf.shape(there)[1], dtype=tf.bool)
    pairs = tf.cast(pairs, tf.float32)
    return tf.math.divide_no_nan(
        tf.reduce_sum(pairs * shared / (whole + 1e-9), axis=[1, 2]), tf.reduce_sum(pairs, axis=[1, 2])
    )
