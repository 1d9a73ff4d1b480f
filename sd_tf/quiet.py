"""TensorFlow imported without the messages that its libraries write, whatever their log level is set to."""

import contextlib
import os
import sys


@contextlib.contextmanager
def silent_stderr():
    """Within the block, nothing is written to file descriptor 2, to which libraries in C++ write."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def import_tensorflow():
    """Imports Keras and TensorFlow, unless that is done already or Keras runs on something else."""
    if "tensorflow" in sys.modules or os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        return
    with silent_stderr():
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()  # which it writes of, too
