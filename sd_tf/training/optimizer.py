"""Clipping, Muon or AdamW, loss scaling and the moving average of the weights, over flat memory."""

import contextlib
import math

import keras
import tensorflow as tf

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
NOT_DECAYED = ("bias", "beta", "gamma", "logit_scale")
BUCKET = 2**24  # numbers in one vector at most, unless a variable alone has more: it bounds extra memory
FIRST_LOSS_SCALE, STEPS_TO_DOUBLE = 2.0**15, 2000
MOMENTUM, NEWTON_SCHULZ = 0.95, (3.4445, -4.7750, 2.0315)
ITERATIONS, AS_ADAMW = 5, 0.2
NO_MATRICES = ("conv_in", "conv_out", "patch_embedding")  # a network's first and last layers


class Optimizer:
    """AdamW or Muon, with clipping by the global norm and a moving average of the weights.

    AdamW is that of Loshchilov & Hutter 2019. Muon (Jordan et al. 2024, "Muon: An optimizer for hidden
    layers in neural networks") updates each kernel of a hidden layer by its momentum with all singular
    values made about 1, by five steps of a Newton-Schulz iteration: directions that gradients seldom
    take are learned as fast as the others. It is scaled to the size of AdamW's updates (Liu et al.
    2025, "Muon is scalable for LLM training", equation 4), so that both take the same learning rates;
    biases, norms, embeddings, first and last layers stay AdamW's. It costs about 20 x min(rows, columns)
    operations for each weight and step: little beside the network's own for small and for large batches
    of pictures, too much for one picture and layers of a thousand channels.

    A network has hundreds of variables, and a dozen operations for each would take as long as the
    network's own arithmetic, most of it before the first step. So moments and averages are a few
    flat vectors ("buckets"), and one XLA-compiled function updates each in a single pass. Made, and
    applied outside `strategy.run`, under the strategy's scope.

    The average's decay is min(`ema_decay`, (1 + step) / (10 + step)): that of TensorFlow 1's
    `ExponentialMovingAverage(num_updates=...)`, which forgets the random initial weights.

    A step whose gradients are not all finite is skipped: it changes nothing but the loss scale.

    Args:
        variables: the trainable variables of a network.
        config: a `StageConfig`; its `optimizer` is "adamw" or "muon".
        loss_scaling: multiplies the loss by a factor that halves when gradients overflow and doubles
            after 2000 steps without one (Micikevicius et al. 2018): for float16.
    """

    def __init__(self, variables, config, loss_scaling=False):
        self.variables, self.config = list(variables), config
        self.learning_rate = tf.Variable(0.0, trainable=False, name="learning_rate")
        self.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="updates")
        self.skipped = tf.Variable(0, trainable=False, name="skipped")  # steps in a row, up to now
        self.loss_scale = self.good_steps = None
        if loss_scaling:
            self.loss_scale = tf.Variable(FIRST_LOSS_SCALE, trainable=False, name="loss_scale")
            self.good_steps = tf.Variable(0, trainable=False, name="good_steps")
        matrices = [v for v in variables if config.optimizer == "muon" and _is_matrix(v)]
        chosen = {id(variable) for variable in matrices}
        decayed = [v for v in variables if v.name not in NOT_DECAYED and id(v) not in chosen]
        others = [v for v in variables if v.name in NOT_DECAYED]
        self.buckets = [_MuonBucket(part, config.weight_decay) for part in _parts(matrices)]
        self.buckets += [_AdamWBucket(part, config.weight_decay) for part in _parts(decayed)]
        self.buckets += [_AdamWBucket(part, 0.0) for part in _parts(others)]

    @property
    def state(self):
        """Name -> variables: all that a checkpoint needs."""
        found = {"learning_rate": self.learning_rate, "updates": self.updates, "skipped": self.skipped}
        for name in ("first", "second", "average"):
            found[name] = [getattr(bucket, name) for bucket in self.buckets if hasattr(bucket, name)]
        if self.loss_scale is not None:
            found |= {"loss_scale": self.loss_scale, "good_steps": self.good_steps}
        return found

    def scaled(self, loss):
        """The loss to differentiate."""
        return loss if self.loss_scale is None else loss * self.loss_scale

    def flat(self, gradients):
        """A replica's gradients, one for each of the variables -> one vector for each bucket."""
        of_variable = {
            id(variable): tf.convert_to_tensor(gradient)  # an embedding's is sparse
            for variable, gradient in zip(self.variables, gradients, strict=True)
        }
        return [
            _joined([of_variable[id(variable)] for variable in bucket.variables]) for bucket in self.buckets
        ]

    def apply(self, gradients):
        """One update, by the sums of all replicas' `flat` gradients; returns their global norm."""
        config, strategy = self.config, tf.distribute.get_strategy()
        gradients = strategy.extended.batch_reduce_to(
            tf.distribute.ReduceOp.SUM,
            [(gradient, bucket.first) for gradient, bucket in zip(gradients, self.buckets, strict=True)],
        )
        norm = tf.sqrt(
            2.0 * tf.add_n([tf.nn.l2_loss(strategy.experimental_local_results(g)[0]) for g in gradients])
        )
        scale = 1.0 if self.loss_scale is None else 1.0 / self.loss_scale
        norm *= scale
        finite = tf.math.is_finite(norm)
        self.updates.assign_add(tf.cast(finite, tf.int64))
        self.skipped.assign(tf.where(finite, 0, self.skipped + 1))
        step = tf.cast(self.updates, tf.float64)  # 1 - 0.999 has but four digits in float32
        decay = tf.minimum(tf.cast(config.ema_decay, tf.float64), (1.0 + step) / (10.0 + step))
        settings = {
            "finite": finite,
            "gradient_scale": scale * tf.minimum(1.0, config.gradient_clip / tf.maximum(norm, 1e-12)),
            "learning_rate": self.learning_rate.read_value(),
            "first_correction": tf.cast(1.0 - BETA_1**step, tf.float32),
            "second_correction": tf.cast(1.0 - BETA_2**step, tf.float32),
            "average_rate": tf.cast(1.0 - decay, tf.float32),
        }
        for gradient, bucket in zip(gradients, self.buckets, strict=True):
            bucket.apply(gradient, settings)
        self._adapt_loss_scale(finite)
        return norm

    def _adapt_loss_scale(self, finite):
        if self.loss_scale is None:
            return
        good = tf.where(finite, self.good_steps + 1, 0)
        grown = tf.where(good >= STEPS_TO_DOUBLE, 2.0 * self.loss_scale, self.loss_scale)
        self.loss_scale.assign(tf.where(finite, grown, tf.maximum(1.0, 0.5 * self.loss_scale)))
        self.good_steps.assign(tf.where(good >= STEPS_TO_DOUBLE, 0, good))

    # -- the averages, which are what pictures are drawn with -------------------------------------------

    @property
    def averages(self):
        """The moving average of each of the variables, in their order and shapes."""
        found = {}
        for bucket in self.buckets:
            parts = bucket.split(bucket.average)
            found |= {id(variable): part for variable, part in zip(bucket.variables, parts, strict=True)}
        return [found[id(variable)] for variable in self.variables]

    @contextlib.contextmanager
    def averages_in_place(self):
        """Within the block the variables hold the averages; afterwards their own values again."""
        own = [keras.ops.convert_to_numpy(variable) for variable in self.variables]
        try:
            self.copy_averages()
            yield
        finally:
            for variable, value in zip(self.variables, own, strict=True):
                variable.assign(value)

    def copy_averages(self):
        """The variables become the averages, for good."""
        for variable, average in zip(self.variables, self.averages, strict=True):
            variable.assign(average)


class _Bucket:
    """Some variables, with their first moments and averages as vectors, one variable after another.

    A kind of bucket has `moments`, names of the vectors that an update reads and writes beside the
    weights, and `step`, which makes the new ones.
    """

    moments = ("first", "average")

    def __init__(self, variables, weight_decay):
        self.variables, self.weight_decay = variables, weight_decay
        self.sizes = [math.prod(variable.shape) for variable in variables]
        for name in self.moments:
            average = name == "average"
            values = _joined([v.value for v in variables]) if average else tf.zeros(sum(self.sizes))
            setattr(self, name, tf.Variable(values, trainable=False, name=name))

    def split(self, vector):
        """A vector's parts, in the variables' shapes."""
        parts = tf.split(vector, self.sizes)
        return [tf.reshape(part, v.shape) for part, v in zip(parts, self.variables, strict=True)]

    def apply(self, gradient, settings):
        """Moves everything by one step, on each device that holds it."""

        def update(first, others, weights, gradient):
            vectors = [first, *others]
            # Values: given variables, TensorFlow would go on with those of the trainer it traced this for.
            values = [variable.read_value() for variable in vectors]
            state = self.step(_joined(weights), *values, gradient, settings)
            new, *moments = (tf.ensure_shape(vector, first.shape) for vector in state)
            for variable, values in zip(vectors, moments, strict=True):
                variable.assign(values)
            for weight, values in zip(weights, self.split(new), strict=True):
                weight.assign(values)

        weights = [variable.value for variable in self.variables]
        others = [getattr(self, name) for name in self.moments[1:]]
        tf.distribute.get_strategy().extended.update(
            self.first, update, args=(others, weights, gradient), group=False
        )


class _AdamWBucket(_Bucket):
    moments = ("first", "second", "average")

    def step(self, weights, first, second, average, gradient, settings):
        """New weights and moments; the old ones where the gradients are not finite."""
        return _adamw_step(weights, first, second, average, gradient, self.weight_decay, settings)


class _MuonBucket(_Bucket):
    def step(self, weights, first, average, gradient, settings):
        """As that of `_AdamWBucket`."""
        momentum, direction = _momentum(first, gradient, settings["gradient_scale"])
        direction = _joined(self._orthogonal(self.split(direction)))
        return _muon_step(weights, first, average, momentum, direction, self.weight_decay, settings)

    def _orthogonal(self, directions):
        """Each with its singular values made about 1: those of one shape together."""
        places, found = {}, [None] * len(directions)
        for i, direction in enumerate(directions):
            places.setdefault(tuple(direction.shape), []).append(i)
        for shape, indices in places.items():
            columns = shape[-1]
            matrices = tf.stack([tf.reshape(directions[i], (-1, columns)) for i in indices])
            scale = AS_ADAMW * math.sqrt(max(matrices.shape[1:]))
            for i, matrix in zip(indices, tf.unstack(scale * orthogonal(matrices)), strict=True):
                found[i] = tf.reshape(matrix, shape)
        return found


def orthogonal(matrices):
    """The nearest orthogonal matrices, or about that: singular values come to 0.7 to 1.2.

    Args:
        matrices: float32 (number, rows, columns).

    Returns:
        The same shape.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = tf.linalg.matrix_transpose(matrices) if tall else matrices
    x /= tf.norm(x, axis=(1, 2), keepdims=True) + 1e-7
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        square = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * square + c * tf.matmul(square, square), x)
    return tf.linalg.matrix_transpose(x) if tall else x


@tf.function(jit_compile=True, autograph=False)
def _adamw_step(weights, first, second, average, gradient, weight_decay, settings):
    gradient = gradient * settings["gradient_scale"]
    new_first = BETA_1 * first + (1.0 - BETA_1) * gradient
    new_second = BETA_2 * second + (1.0 - BETA_2) * tf.square(gradient)
    direction = (new_first / settings["first_correction"]) / (
        tf.sqrt(new_second / settings["second_correction"]) + EPSILON
    )
    new = weights - settings["learning_rate"] * (direction + weight_decay * weights)
    new_average = average + settings["average_rate"] * (new - average)
    pairs = ((new, weights), (new_first, first), (new_second, second), (new_average, average))
    return tuple(tf.where(settings["finite"], after, before) for after, before in pairs)


@tf.function(jit_compile=True, autograph=False)
def _momentum(first, gradient, gradient_scale):
    """New momentum, and where Nesterov's looks ahead of it."""
    gradient = gradient * gradient_scale
    momentum = MOMENTUM * first + (1.0 - MOMENTUM) * gradient
    return momentum, MOMENTUM * momentum + (1.0 - MOMENTUM) * gradient


@tf.function(jit_compile=True, autograph=False)
def _muon_step(weights, first, average, momentum, direction, weight_decay, settings):
    new = weights - settings["learning_rate"] * (direction + weight_decay * weights)
    new_average = average + settings["average_rate"] * (new - average)
    pairs = ((new, weights), (momentum, first), (new_average, average))
    return tuple(tf.where(settings["finite"], after, before) for after, before in pairs)


def _is_matrix(variable):
    """Whether Muon may have it: the kernel of a layer that is neither the first nor the last."""
    return variable.name == "kernel" and not any(part in variable.path for part in NO_MATRICES)


def _joined(tensors):
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)


def _parts(variables):
    """The variables, in order, in groups of `BUCKET` numbers at most."""
    parts, size = [], BUCKET + 1
    for variable in variables:
        number = math.prod(variable.shape)
        if size + number > BUCKET:
            parts.append([])
            size = 0
        parts[-1].append(variable)
        size += number
    return parts
