"""AdamW and Muon, with gradient clipping, loss scaling and an EMA of the weights, on flat vectors."""

import contextlib
import functools
import math

import keras
import tensorflow as tf

EPSILON = 1e-8
NOT_DECAYED = ("bias", "beta", "gamma", "logit_scale")
BUCKET = 2**22  # most values in one vector, unless one variable has more; bounds temporary memory
FIRST_LOSS_SCALE, STEPS_TO_DOUBLE = 2.0**15, 2000
MOMENTUM, NEWTON_SCHULZ_STEPS, NEWTON_SCHULZ = 0.95, 5, (3.4445, -4.7750, 2.0315)
RMS_OF_ADAMW = 0.2  # of an update before the learning rate (Liu et al. 2025)
KERNELS = ("kernel", "weight")  # the latter of a GAN's adaptive convolutions
FIRST_AND_LAST_LAYERS = ("conv_in", "conv_out", "patch_embedding", "to_rgb")


class Optimizer:
    """AdamW or Muon, with clipping by the global norm and an exponential moving average (EMA) of the weights.

    AdamW is that of Loshchilov & Hutter 2019. Muon (Jordan et al. 2024, "Muon: An optimizer for hidden
    layers in neural networks") updates each kernel of a hidden layer by its momentum, whose singular values
    five steps of a Newton-Schulz iteration bring close to 1. Directions that gradients rarely take are
    then learned as fast as the others. Its updates are scaled to the RMS of AdamW's (Liu et al. 2025,
    "Muon is scalable for LLM training", equation 4), so that both take the same learning rates. Biases,
    norms, embeddings and the first and last layers are updated by AdamW. Muon costs about 10 to
    20 x min(rows, columns) operations for each weight and step. That is little for small networks or large
    batches, and too much for one picture and layers of a thousand channels.

    A network has hundreds of variables. A dozen operations for each would take as long as the network's own
    arithmetic, most of it before the first step. So moments and averages are kept in a few flat vectors
    ("buckets"), and one XLA-compiled function updates each bucket in a single pass.

    The average's decay is min(`ema_decay`, (1 + step) / (10 + step)), that of TensorFlow 1's
    `ExponentialMovingAverage(num_updates=...)`, which forgets the random initial weights. With a decay of 0
    none is kept, and the weights stand for it.

    A variable's `constraint` (a `keras.constraints.Constraint`) is applied to its new value at every update,
    before the moving average takes it in. XLA must be able to compile it.

    A step whose gradients are not all finite is skipped: it changes nothing but the loss scale.

    Create it under the strategy's scope, and call `apply` there too, outside `strategy.run`.

    Args:
        variables: the trainable float32 variables of a network.
        config: a `StageConfig`; its `optimizer` is "adamw" or "muon".
        loss_scaling: whether the loss is multiplied by a factor that halves when gradients overflow and
            doubles after 2000 steps without an overflow (Micikevicius et al. 2018); for float16.
    """

    def __init__(self, variables, config, loss_scaling=False):
        self.variables, self.config = list(variables), config
        self.learning_rate = tf.Variable(0.0, trainable=False, name="learning_rate")
        self.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="updates")
        self.skipped = tf.Variable(0, trainable=False, name="skipped")  # in a row, up to now
        self.loss_scale = self.good_steps = None
        if loss_scaling:
            self.loss_scale = tf.Variable(FIRST_LOSS_SCALE, trainable=False, name="loss_scale")
            self.good_steps = tf.Variable(0, trainable=False, name="good_steps")
        matrices = [v for v in variables if config.optimizer == "muon" and _is_matrix(v)]
        in_muon = {id(variable) for variable in matrices}
        decayed = [v for v in variables if v.name not in NOT_DECAYED and id(v) not in in_muon]
        others = [v for v in variables if v.name in NOT_DECAYED]
        self.buckets = [
            kind(group, weight_decay, bool(config.ema_decay))
            for kind, members, weight_decay in (
                (_MuonBucket, matrices, config.weight_decay),
                (_AdamWBucket, decayed, config.weight_decay),
                (_AdamWBucket, others, 0.0),
            )
            for group in _grouped(members)
        ]

    @property
    def state(self):
        """Name -> the variables to be saved in a checkpoint."""
        found = {"learning_rate": self.learning_rate, "updates": self.updates, "skipped": self.skipped}
        for name in ("first", "second", "average"):
            found[name] = [getattr(bucket, name) for bucket in self.buckets if hasattr(bucket, name)]
        if self.loss_scale is not None:
            found |= {"loss_scale": self.loss_scale, "good_steps": self.good_steps}
        return found

    def scaled(self, loss):
        """The loss to differentiate, multiplied by the loss scale if there is one."""
        return loss if self.loss_scale is None else loss * self.loss_scale

    def flat(self, gradients):
        """One replica's gradients, in the order of the variables -> one flat vector for each bucket."""
        of_variable = {
            id(variable): tf.convert_to_tensor(gradient)  # embeddings have sparse gradients
            for variable, gradient in zip(self.variables, gradients, strict=True)
        }
        return [
            _joined([of_variable[id(variable)] for variable in bucket.variables]) for bucket in self.buckets
        ]

    def apply(self, gradients):
        """Updates the weights once, by the sum of all replicas' gradients.

        Args:
            gradients: a vector for each bucket, of `flat`.

        Returns:
            float32 (): the global norm of the summed gradients, without loss scale and before clipping.
        """
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
        step = tf.cast(self.updates, tf.float64)  # 1 - 0.999 has only four digits in float32
        decay = tf.minimum(tf.cast(config.ema_decay, tf.float64), (1.0 + step) / (10.0 + step))
        settings = {
            "finite": finite,
            "gradient_scale": scale * tf.minimum(1.0, config.gradient_clip / tf.maximum(norm, 1e-12)),
            "learning_rate": self.learning_rate.read_value(),
            "beta_1": config.beta_1,
            "beta_2": config.beta_2,
            "first_correction": tf.cast(1.0 - config.beta_1**step, tf.float32),
            "second_correction": tf.cast(1.0 - config.beta_2**step, tf.float32),
            "average_rate": tf.cast(1.0 - decay, tf.float32),
        }
        before = [norm]
        for gradient, bucket in zip(gradients, self.buckets, strict=True):
            # One after another, and not before all gradients are there: each takes memory of its own.
            with tf.control_dependencies(before):
                before = bucket.apply(gradient, settings)
        self._adapt_loss_scale(finite)
        return norm

    def _adapt_loss_scale(self, finite):
        if self.loss_scale is None:
            return
        good = tf.where(finite, self.good_steps + 1, 0)
        grown = tf.where(good >= STEPS_TO_DOUBLE, 2.0 * self.loss_scale, self.loss_scale)
        self.loss_scale.assign(tf.where(finite, grown, tf.maximum(1.0, 0.5 * self.loss_scale)))
        self.good_steps.assign(tf.where(good >= STEPS_TO_DOUBLE, 0, good))

    # -- the moving averages, which are used for generation -----------------------------------------------

    @property
    def averages(self):
        """The moving averages of the variables, in their order and shapes; without any, their values."""
        if not self.config.ema_decay:
            return [tf.stop_gradient(variable.value) for variable in self.variables]
        found = {}
        for bucket in self.buckets:
            parts = bucket.split(bucket.average)
            found |= {id(variable): part for variable, part in zip(bucket.variables, parts, strict=True)}
        return [found[id(variable)] for variable in self.variables]

    @contextlib.contextmanager
    def averages_in_place(self):
        """Within the block the variables hold the averages; afterwards they hold their own values again."""
        own = [keras.ops.convert_to_numpy(variable) for variable in self.variables]
        try:
            self.copy_averages()
            yield
        finally:
            for variable, value in zip(self.variables, own, strict=True):
                variable.assign(value)

    def copy_averages(self):
        """Overwrites the variables with the averages."""
        for variable, average in zip(self.variables, self.averages, strict=True):
            variable.assign(average)


class _Bucket:
    """Some of the variables, with their moments and averages concatenated in flat vectors.

    A subclass lists in `moments` the vectors that an update reads and writes besides the weights and their
    average, and computes the new values in `step`.
    """

    moments = ("first",)

    def __init__(self, variables, weight_decay, has_average):
        self.variables, self.weight_decay = variables, weight_decay
        self.sizes = [math.prod(variable.shape) for variable in variables]
        if has_average:
            self.moments = (*self.moments, "average")
        for name in self.moments:
            average = name == "average"
            values = _joined([v.value for v in variables]) if average else tf.zeros(sum(self.sizes))
            setattr(self, name, tf.Variable(values, trainable=False, name=name))
        constrained = any(variable.constraint is not None for variable in variables)
        self.constrain = self._constrain if constrained else None
        # Those of all buckets share their graphs; graphs of a constraint are to go with its network.
        self.compiled = functools.cache(_by_xla) if constrained else _compiled

    def _constrain(self, vector):
        """Applies the variables' constraints to a vector of weights."""
        values = zip(self.variables, self.split(vector), strict=True)
        return _joined([value if v.constraint is None else v.constraint(value) for v, value in values])

    def split(self, vector):
        """Splits a vector into tensors of the variables' shapes."""
        parts = tf.split(vector, self.sizes)
        return [tf.reshape(part, v.shape) for part, v in zip(parts, self.variables, strict=True)]

    def apply(self, gradient, settings):
        """Updates weights and moments by one step, on each device that holds them.

        Returns:
            What is computed when it is done: a tensor for each device.
        """

        def update(first, others, weights, gradient):
            vectors = [first, *others]
            # Values, not variables: TensorFlow would keep using those of the first trainer that traced this.
            values = [variable.read_value() for variable in vectors]
            state = self.step(gradient, settings, _joined(weights), *values)
            new, *moments = (tf.ensure_shape(vector, first.shape) for vector in state)
            for variable, values in zip(vectors, moments, strict=True):
                variable.assign(values)
            for weight, values in zip(weights, self.split(new), strict=True):
                weight.assign(values)
            return new

        weights = [variable.value for variable in self.variables]
        others = [getattr(self, name) for name in self.moments[1:]]
        strategy = tf.distribute.get_strategy()
        done = strategy.extended.update(self.first, update, args=(others, weights, gradient), group=False)
        return strategy.experimental_local_results(done)


class _AdamWBucket(_Bucket):
    moments = ("first", "second")

    def step(self, gradient, settings, weights, first, second, average=None):
        """New weights and moments, or the old ones if the gradients are not finite."""
        return self.compiled(_adamw_step)(
            weights, first, second, average, gradient, self.weight_decay, settings, self.constrain
        )


class _MuonBucket(_Bucket):
    def step(self, gradient, settings, weights, first, average=None):
        """See `_AdamWBucket.step`."""
        momentum, direction = _compiled(_momentum)(first, gradient, settings["gradient_scale"])
        direction = _joined(self._orthogonal(self.split(direction)))
        return self.compiled(_muon_step)(
            weights, first, average, momentum, direction, self.weight_decay, settings, self.constrain
        )

    def _orthogonal(self, directions):
        """Orthogonalises and scales each direction; those of equal shape in one batch."""
        by_shape, found = {}, [None] * len(directions)
        for i, direction in enumerate(directions):
            by_shape.setdefault(tuple(direction.shape), []).append(i)
        for shape, indices in by_shape.items():
            columns = shape[-1]
            matrices = tf.stack([tf.reshape(directions[i], (-1, columns)) for i in indices])
            scale = RMS_OF_ADAMW * math.sqrt(max(matrices.shape[1:]))
            for i, matrix in zip(indices, tf.unstack(scale * orthogonal(matrices)), strict=True):
                found[i] = tf.reshape(matrix, shape)
        return found


def orthogonal(matrices):
    """Approximately the nearest orthogonal matrices, by Newton-Schulz: singular values from 0.7 to 1.2.

    Each step multiplies the matrix by a polynomial of its rows' products with each other. Where a matrix is
    far from square, the steps are taken on these products alone, which are small, and the matrix is
    multiplied once, at the end: for a convolution of 3 x 3 a third of the operations.

    Args:
        matrices: float32 (number, rows, columns).

    Returns:
        float32 of the same shape.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = tf.linalg.matrix_transpose(matrices) if tall else matrices
    x /= tf.norm(x, axis=(1, 2), keepdims=True) + 1e-7
    x = _orthogonal_by_products(x) if x.shape[2] >= 2 * x.shape[1] else _orthogonal(x)
    return tf.linalg.matrix_transpose(x) if tall else x


def _orthogonal(x):
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * square + c * tf.matmul(square, square), x)
    return x


def _orthogonal_by_products(x):
    """What `_orthogonal` computes: polynomials of one matrix commute, so that they can be joined first."""
    a, b, c = NEWTON_SCHULZ
    square = tf.matmul(x, x, transpose_b=True)
    whole = identity = tf.eye(square.shape[1], dtype=x.dtype)
    for step in range(NEWTON_SCHULZ_STEPS):
        polynomial = a * identity + b * square + c * tf.matmul(square, square)
        whole = tf.matmul(polynomial, whole) if step else polynomial
        if step < NEWTON_SCHULZ_STEPS - 1:
            square = tf.matmul(tf.matmul(polynomial, square), polynomial)
    return tf.matmul(whole, x)


def _by_xla(function):
    return tf.function(function, jit_compile=True, autograph=False)


_compiled = functools.cache(_by_xla)


def _adamw_step(weights, first, second, average, gradient, weight_decay, settings, constrain):
    gradient, beta_1, beta_2 = gradient * settings["gradient_scale"], settings["beta_1"], settings["beta_2"]
    new_first = beta_1 * first + (1.0 - beta_1) * gradient
    new_second = beta_2 * second + (1.0 - beta_2) * tf.square(gradient)
    direction = (new_first / settings["first_correction"]) / (
        tf.sqrt(new_second / settings["second_correction"]) + EPSILON
    )
    new = weights - settings["learning_rate"] * (direction + weight_decay * weights)
    if constrain is not None:
        new = constrain(new)
    pairs = ((new, weights), (new_first, first), (new_second, second))
    return _if_finite(pairs, new, average, settings)


def _momentum(first, gradient, gradient_scale):
    """The new momentum, and Nesterov's direction, which looks one step ahead."""
    gradient = gradient * gradient_scale
    momentum = MOMENTUM * first + (1.0 - MOMENTUM) * gradient
    return momentum, MOMENTUM * momentum + (1.0 - MOMENTUM) * gradient


def _muon_step(weights, first, average, momentum, direction, weight_decay, settings, constrain):
    new = weights - settings["learning_rate"] * (direction + weight_decay * weights)
    if constrain is not None:
        new = constrain(new)
    return _if_finite(((new, weights), (momentum, first)), new, average, settings)


def _if_finite(pairs, new, average, settings):
    """Of each pair the first vector, or the second where gradients are not finite; at the end the average."""
    if average is not None:
        pairs = (*pairs, (average + settings["average_rate"] * (new - average), average))
    return tuple(tf.where(settings["finite"], after, before) for after, before in pairs)


def _is_matrix(variable):
    """Whether Muon may update it: a kernel of a layer that is neither the first nor the last."""
    return variable.name in KERNELS and not any(name in variable.path for name in FIRST_AND_LAST_LAYERS)


def _joined(tensors):
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)


def _grouped(variables):
    """Divides the variables, in order, into groups of at most `BUCKET` values."""
    groups, size = [], BUCKET + 1
    for variable in variables:
        number = math.prod(variable.shape)
        if size + number > BUCKET:
            groups.append([])
            size = 0
        groups[-1].append(variable)
        size += number
    return groups
