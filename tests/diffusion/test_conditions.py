"""A condition batches, splits and concatenates all its parts together, wherever its arrays live."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from sd_tf.diffusion.conditions import Condition, concatenate, drop_captions
from sd_tf.errors import InputError

SHAPES = {
    "context": (4, 5),
    "mask": (4,),
    "pooled": (6,),
    "low_res": (3, 3, 2),
    "low_res_level": (),
    "guidance": (),
}


def make(rows, seed=0, parts=SHAPES):
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal((rows, *SHAPES[name])).astype("float32") for name in parts}
    return Condition(**values)._replace(**({"mask": values["mask"] > 0} if "mask" in values else {}))


def tensors(condition):
    return condition.map(tf.constant)


def assert_same(one, other):
    for name, first, second in zip(Condition._fields, one, other, strict=True):
        assert (first is None) == (second is None), name
        if first is not None:
            np.testing.assert_array_equal(first, second, name)


@pytest.mark.parametrize("kind", [lambda condition: condition, tensors], ids=["numpy", "tensors"])
@pytest.mark.parametrize("parts", [tuple(SHAPES), ("context",), ("low_res", "low_res_level")], ids=str)
def test_what_is_concatenated_splits_into_what_it_was(parts, kind):
    both = [kind(make(3, seed, parts)) for seed in (1, 2)]
    joined = concatenate(both)
    assert joined.batch_size == 6
    for part, expected in zip(joined.split(2), both, strict=True):
        assert_same(part, expected)
    assert_same(concatenate([both[0]]), both[0])


@pytest.mark.parametrize("kind", [lambda condition: condition, tensors], ids=["numpy", "tensors"])
def test_rows_are_taken_of_every_part(kind):
    plain = make(5)
    for places in (slice(1, 3), [4, 0, 4], np.array([2])):
        expected = Condition(*(part[places] for part in plain))
        assert_same(kind(plain).rows(places), expected)
    assert_same(kind(plain).repeat(2), Condition(*(np.repeat(part, 2, axis=0) for part in plain)))


@pytest.mark.parametrize("kind", [lambda condition: condition, tensors], ids=["numpy", "tensors"])
def test_dropped_captions_are_the_empty_one_and_the_rest_stays(kind):
    condition, empty = make(3), make(1, seed=9, parts=("context", "mask", "pooled"))
    mixed = drop_captions(kind(condition), kind(empty), np.array([True, False, True]))
    for name in Condition._fields:
        found, before = getattr(mixed, name), getattr(condition, name)
        np.testing.assert_array_equal(found[1], before[1])
        other = getattr(empty, name)
        for row in (0, 2):
            np.testing.assert_array_equal(found[row], before[row] if other is None else other[0])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_captions_are_dropped_in_a_graph_in_the_dtype_of_the_batch(dtype):
    context = tf.cast(tf.random.normal((3, 4, 5), seed=0), dtype)
    empty = tf.random.normal((1, 4, 5), seed=1)
    for drop in (drop_captions, tf.function(drop_captions)):
        mixed = drop(Condition(context), Condition(empty), tf.constant([True, False, True])).context
        assert mixed.dtype == dtype
        np.testing.assert_array_equal(mixed[1], context[1])
        for dropped in (0, 2):
            np.testing.assert_array_equal(mixed[dropped], tf.cast(empty[0], dtype))


def test_a_graph_may_not_know_the_number_of_tokens():
    specs = [tf.TensorSpec([None, None, 5]), tf.TensorSpec([None, None], tf.bool)]
    plain, empty = make(3, parts=("context", "mask")), make(1, seed=9, parts=("context", "mask"))

    @tf.function(input_signature=specs)
    def dropped(context, mask):
        return drop_captions(Condition(context, mask), tensors(empty), tf.constant([True, False, True]))

    expected = drop_captions(plain, empty, np.array([True, False, True]))
    assert_same(dropped(plain.context, plain.mask), expected)


def test_it_is_an_argument_of_a_graph_that_is_traced_once_for_all_batch_sizes():
    traces = []

    @tf.function(reduce_retracing=True)
    def doubled(condition):
        traces.append(condition)
        first, second = concatenate([condition, condition]).split(2)
        return second, first.batch_size

    for rows in (2, 3, 4):
        plain = make(rows, parts=("context", "mask"))
        found, size = doubled(tensors(plain))
        assert_same(found, plain)
        assert size == rows
    assert len(traces) == 2  # for the first size, then for any


def test_it_is_an_element_of_a_dataset_and_of_keras_structures():
    plain = make(4, parts=("context", "pooled"))
    [batch] = tf.data.Dataset.from_tensor_slices(plain).batch(4)
    assert isinstance(batch, Condition)
    assert_same(batch, plain)
    doubled = keras.tree.map_structure(lambda part: None if part is None else 2 * part, plain)
    assert_same(doubled, Condition(2 * plain.context, pooled=2 * plain.pooled))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make(2, parts=("context",)), "one condition has mask, another has none: give both the same parts"),
        (make(2, parts=("context", "mask", "pooled")), "another has pooled, one condition has none"),
        (
            Condition(np.zeros((2, 8, 5)), np.zeros((2, 8), bool)),
            r"context has the shapes \(2, 4, 5\) and \(2, 8, 5\) in one condition and another: encode both",
        ),
    ],
    ids=["less", "more", "longer"],
)
def test_conditions_of_other_parts_or_shapes_are_not_joined(other, message):
    condition = make(2, parts=("context", "mask"))
    with pytest.raises(InputError, match=message):
        concatenate([condition, other])
    with pytest.raises(InputError, match=message):
        drop_captions(condition, other, np.array([True, False]))


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        make(2).context = None
