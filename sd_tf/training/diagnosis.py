"""Finds where NaN or infinity came from, after steps have been skipped because of it."""

import contextlib

import numpy as np
import tensorflow as tf


def first_not_finite(step, number: int) -> str:
    """The first value in a step that is not finite, in the batch, weights, layer outputs, loss or gradients.

    The step is run again, move by move and layer by layer.

    Args:
        step: a `Step`.
        number: of the step, from 0.

    Returns:
        Its name, as the subject of a sentence.
    """
    moves = step.stage.moves
    batches = step.stage.batches(number * len(moves)).take(len(moves)).as_numpy_iterator()
    for name, batch in zip(moves, batches, strict=True):
        found = _in_move(step, name, batch)
        if found is not None:
            return found
    return "nothing when the last step is repeated, but something before it"


def _in_move(step, name, batch):
    """What is not finite in a player's move; None if everything is finite."""
    for key, values in batch.items():
        if not _finite(values):
            example = next(i for i, value in enumerate(values) if not _finite(value))
            return f"{key} of example {example} in the batch"
    learner, not_finite = step.learners[name], []
    for each in step.learners.values():
        for variable in each.variables:
            if not _finite(variable.value):
                return f"the weights {variable.path}"
    with contextlib.ExitStack() as stack:
        for each in step.learners.values():
            stack.enter_context(_watched(each.network, not_finite))
        tape = stack.enter_context(tf.GradientTape())
        tensors = {key: tf.convert_to_tensor(values) for key, values in batch.items()}
        loss = step.stage.losses(tensors, name, step.averages)["loss"]
        objective = learner.optimizer.scaled(tf.reduce_mean(loss))
    if not_finite:
        return f"the output of layer {not_finite[0]}"
    if not _finite(objective):
        return "the loss, although all layer outputs are finite,"
    variables = learner.variables[::-1]  # backpropagation starts at the last layer
    for variable, gradient in zip(variables, tape.gradient(objective, variables), strict=True):
        if gradient is not None and not _finite(tf.convert_to_tensor(gradient)):
            return f"the gradient of {variable.path}"
    return None


def _finite(values):
    values = np.asarray(tf.cast(values, tf.float32) if tf.is_tensor(values) else values)
    return not np.issubdtype(values.dtype, np.floating) or bool(np.isfinite(values).all())


@contextlib.contextmanager
def _watched(network, not_finite):
    """Within the block, appends the path of each layer whose output is not finite to `not_finite`."""
    layers = [layer for layer in network._flatten_layers() if layer is not network]

    def watching(layer, call):
        def watched(*args, **kwargs):
            outputs = call(*args, **kwargs)
            if not all(_finite(output) for output in tf.nest.flatten(outputs) if tf.is_tensor(output)):
                not_finite.append(layer.path)
            return outputs

        return watched

    for layer in layers:
        layer.call = watching(layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call  # uncovers the method of the class
