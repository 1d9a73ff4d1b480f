"""The `tf.distribute` strategy of a run: one device, or several that each take a part of the batch."""

import os

import tensorflow as tf

from sd_tf.errors import InputError, argument
from sd_tf.training.launch import LAUNCHER


def check_batch_size(batch_size: int, replicas: int, accumulate: int = 1, unit: int = 1):
    """Raises `InputError` if a batch cannot be divided into equal parts for replicas and accumulation.

    Args:
        unit: examples that stay together.
    """
    if batch_size % (replicas * accumulate * unit):
        raise InputError(
            f"{argument('batch_size')} {batch_size} cannot be divided among {replicas} replicas"
            + (f" with {argument('accumulate')} {accumulate}" if accumulate > 1 else "")
            + (f" in groups of {unit}" if unit > 1 else "")
            + f": give a multiple of {replicas * accumulate * unit}"
        )


def make(name: str, replicas: int | None) -> tf.distribute.Strategy:
    """Makes the `tf.distribute` strategy; call it before anything else uses TensorFlow's devices.

    Args:
        name: "none"; "mirrored": one replica on each GPU or, without GPUs, on each of several virtual CPUs,
            which is no faster but runs the same code; "multiworker": several processes, whose cluster
            `TF_CONFIG` or the environment of a SLURM step describes; "tpu": the TPU of this machine.
        replicas: number of replicas of "mirrored"; None for all GPUs, or 2 virtual CPUs.

    Raises:
        InputError: there are fewer devices than asked for, they are in use already, or nothing describes
            the cluster.
    """
    if name != "mirrored" and replicas not in (None, 1):
        raise InputError(
            f"{argument('replicas')} is {replicas} with {argument('strategy')} {name}: only "
            f"{argument('strategy')} mirrored takes it"
        )
    makers = {"none": tf.distribute.get_strategy, "multiworker": _multiworker, "tpu": _tpu}
    return _mirrored(replicas) if name == "mirrored" else makers[name]()


def _mirrored(replicas):
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if gpus:
        if replicas is not None and replicas > len(gpus):
            raise InputError(f"{argument('replicas')} is {replicas}, but there are {len(gpus)} GPUs")
        return tf.distribute.MirroredStrategy([device.name for device in gpus[:replicas]])
    replicas = replicas or 2
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    except RuntimeError:
        found = len(tf.config.list_logical_devices("CPU"))
        if found < replicas:
            raise InputError(
                f"{argument('replicas')} is {replicas}, but TensorFlow already runs with {found} virtual "
                "CPUs: restart Python"
            ) from None
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def _multiworker():
    resolvers = tf.distribute.cluster_resolver
    try:
        if "TF_CONFIG" in os.environ:
            resolver = resolvers.TFConfigClusterResolver()
            resolver.cluster_spec()  # raises if TF_CONFIG is wrong
        elif "SLURM_PROCID" in os.environ:
            tasks = int(os.environ["SLURM_NTASKS"])
            resolver = resolvers.SlurmClusterResolver(
                jobs={"worker": tasks},
                auto_set_gpu=False,
                # Pretend that each task has a GPU: otherwise the resolver has no addresses.
                gpus_per_node=tasks,
                gpus_per_task=1,
            )
            resolver.cluster_spec()  # sets the resolver's task id
        else:
            raise InputError(
                f"{argument('strategy')} multiworker needs a list of its workers: give "
                f"{argument('workers')} N for N processes on this machine, set TF_CONFIG "
                "for each worker, or start them with srun"
            )
        _take_share_of_gpus(resolver)
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except (KeyError, TypeError, ValueError, RuntimeError, tf.errors.OpError) as error:
        if isinstance(error, InputError):
            raise
        source = "TF_CONFIG" if "TF_CONFIG" in os.environ else "SLURM's environment"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{argument('strategy')} multiworker cannot use {source}: {reason}") from None


def _take_share_of_gpus(resolver):
    """Gives each worker on this machine its share of the GPUs, unless CUDA_VISIBLE_DEVICES already does."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus or ("CUDA_VISIBLE_DEVICES" in os.environ and LAUNCHER not in os.environ):
        return
    addresses = resolver.cluster_spec().job_tasks(resolver.task_type)
    own = addresses[resolver.task_id]
    here = [address for address in addresses if address.rpartition(":")[0] == own.rpartition(":")[0]]
    index, number = here.index(own), len(here)
    share = gpus[len(gpus) * index // number : len(gpus) * (index + 1) // number]
    if not share:
        raise InputError(
            f"{number} workers are on a machine with {len(gpus)} GPUs: start at most {len(gpus)}"
        )
    tf.config.set_visible_devices(share, "GPU")


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{argument('strategy')} tpu finds no TPU ({reason}): use another {argument('strategy')}"
        ) from None
