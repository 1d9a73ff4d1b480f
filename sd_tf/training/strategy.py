"""Where a step runs: one device, or several that each take their part of the batch."""

import tensorflow as tf

from sd_tf.errors import InputError


def check_batch_size(batch_size: int, strategy: tf.distribute.Strategy, accumulate: int = 1):
    """Raises `InputError` where a batch has no equal parts for the replicas, one after another in each."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % (replicas * accumulate):
        raise InputError(
            f"--batch-size {batch_size} does not divide among {replicas} replicas"
            + (f", each --accumulate {accumulate} times" if accumulate > 1 else "")
            + f": give a multiple of {replicas * accumulate}"
        )


def make(name: str, replicas: int | None) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy of a run; call it before anything else uses TensorFlow's devices.

    Args:
        name: "none", or "mirrored": one replica on each GPU, or, without GPUs, on each of some
            virtual CPUs, which gains no time but runs the same code.
        replicas: of "mirrored"; None for all GPUs, or 2 virtual CPUs.

    Raises:
        InputError: there are fewer GPUs than asked for, or the devices are in use already.
    """
    if name == "none":
        if replicas not in (None, 1):
            raise InputError(f"--replicas is {replicas} with --strategy none: add --strategy mirrored")
        return tf.distribute.get_strategy()
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if gpus:
        if replicas is not None and replicas > len(gpus):
            raise InputError(f"--replicas is {replicas}, but there are {len(gpus)} GPUs")
        return tf.distribute.MirroredStrategy([device.name for device in gpus[:replicas]])
    replicas = replicas or 2
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    except RuntimeError:
        found = len(tf.config.list_logical_devices("CPU"))
        if found < replicas:
            raise InputError(
                f"--replicas is {replicas}, but TensorFlow already runs with {found} virtual CPUs: start anew"
            ) from None
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
