"""An exponential moving average of the weights, which is what pictures are drawn with."""

import contextlib

import tensorflow as tf


class ExponentialMovingAverage(tf.Module):
    """Averages variables with decay min(`decay`, (1 + step) / (10 + step)).

    The warm-up, that of TensorFlow 1's `ExponentialMovingAverage(num_updates=...)`, forgets the
    random initial weights. Made and updated outside `strategy.run`, under the strategy's scope.
    """

    def __init__(self, variables, decay):
        super().__init__(name="ema")
        self.decay = decay
        self.sources = [variable.value for variable in variables]
        self.averages = [
            tf.Variable(source.read_value(), trainable=False, name=f"average_{i}")
            for i, source in enumerate(self.sources)
        ]

    def update(self, step):
        """Moves the averages towards the variables; `step` int64, from 1."""
        step = tf.cast(step, tf.float32)
        rate = 1.0 - tf.minimum(self.decay, (1.0 + step) / (10.0 + step))
        update = tf.distribute.get_strategy().extended.update
        for average, source in zip(self.averages, self.sources, strict=True):
            update(average, lambda a, s: a.assign_sub(rate * (a - s)), args=(source,), group=False)

    @contextlib.contextmanager
    def in_place(self):
        """Within the block the variables hold the averages; afterwards their own values again."""
        own = [source.numpy() for source in self.sources]
        try:
            self.copy_to_variables()
            yield
        finally:
            for source, value in zip(self.sources, own, strict=True):
                source.assign(value)

    def copy_to_variables(self):
        """The variables become the averages, for good."""
        for average, source in zip(self.averages, self.sources, strict=True):
            source.assign(average)
