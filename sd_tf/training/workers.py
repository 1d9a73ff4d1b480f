"""The processes of a distributed run, each with a part of every batch, and how they agree on decisions."""

import contextlib

import numpy as np
import tensorflow as tf

from sd_tf.errors import InputError
from sd_tf.graphs import batch_slices


class Workers:
    """The processes of a strategy, as one of them sees them; a single one unless it is "multiworker".

    All run the same code on the same variables, so they must take the same decisions. What each measures
    (seconds) or notices (Ctrl-C, files) is therefore gathered from all before it is acted on.

    Args:
        strategy: a `tf.distribute.Strategy`.

    Attributes:
        number: how many processes.
        index: index of this process, from 0.
        is_chief: whether this process, of index 0, writes files, draws previews and shows progress.
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
        """The values of all workers, float64 (workers, values). Blocks until each has called it."""
        own = np.array([values], np.float64)
        if self.number == 1:
            return own
        rows = self._gathered(tf.constant(own)).numpy()
        return rows[:: len(rows) // self.number]  # the replicas of a worker have equal rows

    def wait(self):
        """Blocks until all workers have called it."""
        self.gathered(0.0)  # gathering no values at all crashes TensorFlow

    def _gather(self, values):
        return self.strategy.gather(self.strategy.run(lambda: tf.identity(values)), axis=0)


def slices_on_cores(num_examples, strategy, unit=1) -> int:
    """`batch_slices` of a replica's part of so many examples, of all replicas of all workers."""
    replicas = strategy.num_replicas_in_sync
    here = replicas // Workers(strategy).number  # replicas that share this process's cores
    return batch_slices(num_examples // replicas, here, unit)


@contextlib.contextmanager
def lost_worker_named(workers):
    """Turns TensorFlow's error about a lost worker into an `InputError`."""
    try:
        yield
    except tf.errors.OpError as error:
        if workers.number == 1:
            raise
        raise InputError(
            f"worker {workers.index} of {workers.number} stops, as another has stopped or cannot be reached "
            f"({type(error).__name__}): the same command in all workers resumes from the last checkpoint"
        ) from None
