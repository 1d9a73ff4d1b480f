"""Where NaN or infinity came from, once steps have been skipped for it."""

import contextlib

import numpy as np
import tensorflow as tf


def first_not_finite(stage, batch, scaled) -> str:
    """The first thing in a step that is not finite: of the batch, the weights, the layers, the gradients.

    The step is done again, layer by layer.

    Args:
        stage: what is trained.
        batch: name -> values, of one step.
        scaled: the loss that the step differentiates, as a function of the loss.

    Returns:
        What it is, as part of a sentence.
    """
    for name, values in batch.items():
        if not _finite(values):
            example = next(i for i, value in enumerate(values) if not _finite(value))
            return f"{name} of example {example} in the batch"
    variables = stage.network.trainable_variables
    for variable in variables:
        if not _finite(variable.value):
            return f"the weights {variable.path}"
    seen = []
    with _watched(stage.network, seen), tf.GradientTape() as tape:
        loss = stage.loss({name: tf.convert_to_tensor(values) for name, values in batch.items()})["loss"]
        objective = scaled(tf.reduce_mean(loss))
    if seen:
        return f"the output of layer {seen[0]}"
    if not _finite(objective):
        return "the loss, after layers whose outputs all are,"
    variables = variables[::-1]  # a gradient comes from behind
    for variable, gradient in zip(variables, tape.gradient(objective, variables), strict=True):
        if gradient is not None and not _finite(tf.convert_to_tensor(gradient)):
            return f"the gradient of {variable.path}"
    return "nothing, as the last step is done again, but before that something"


def _finite(values):
    values = np.asarray(tf.cast(values, tf.float32) if tf.is_tensor(values) else values)
    return not np.issubdtype(values.dtype, np.floating) or bool(np.isfinite(values).all())


@contextlib.contextmanager
def _watched(network, seen):
    """Within the block, layers whose outputs are not finite are noted in `seen` by their paths, in order."""
    layers = [layer for layer in network._flatten_layers() if layer is not network]

    def watching(layer, call):
        def watched(*args, **kwargs):
            outputs = call(*args, **kwargs)
            if not all(_finite(output) for output in tf.nest.flatten(outputs) if tf.is_tensor(output)):
                seen.append(layer.path)
            return outputs

        return watched

    for layer in layers:
        layer.call = watching(layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call  # the class's own is found again
