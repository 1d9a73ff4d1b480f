"""The processes that train together, each with a part of every batch, and what they agree on."""

import contextlib

import numpy as np
import tensorflow as tf

from sd_tf.errors import InputError


class Workers:
    """The processes of a strategy, seen from one of them; there is but one without "multiworker".

    All of them run the same code and have the same variables, so they must take the same decisions: what
    they measure (seconds) and notice (Ctrl-C, files), each by itself, they first put together.

    Args:
        strategy: a `tf.distribute.Strategy`.

    Attributes:
        number: of processes.
        index: of this one, from 0.
        is_chief: whether this is the one that writes, draws and shows.
    """

    def __init__(self, strategy):
        self.strategy, self.number, self.index = strategy, 1, 0
        resolver = strategy.cluster_resolver
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            jobs = resolver.cluster_spec().as_dict()
            places = [(job, i) for job in ("chief", "worker") for i in range(len(jobs.get(job, ())))]
            self.number = len(places)
            self.index = places.index((resolver.task_type, resolver.task_id))
        self.is_chief = self.index == 0
        self._gathered = tf.function(self._gather, autograph=False)

    def gathered(self, *values: float) -> np.ndarray:
        """The numbers of all workers, float64 (workers, values); it waits until each has come here."""
        own = np.array([values], np.float64)
        if self.number == 1:
            return own
        rows = self._gathered(tf.constant(own)).numpy()
        return rows[:: len(rows) // self.number]  # every replica of a worker says the same

    def wait(self):
        """Until all workers are here."""
        self.gathered(0.0)  # TensorFlow gathers nothing by a segmentation fault

    def _gather(self, values):
        return self.strategy.gather(self.strategy.run(lambda: tf.identity(values)), axis=0)


@contextlib.contextmanager
def lost_worker_named(workers):
    """What TensorFlow says when another worker is lost becomes an `InputError`."""
    try:
        yield
    except tf.errors.OpError as error:
        if workers.number == 1:
            raise
        raise InputError(
            f"worker {workers.index} of {workers.number} stops, as another has stopped or cannot be reached "
            f"({type(error).__name__}): the same command in all workers resumes from the last checkpoint"
        ) from None
