import gc
import itertools
import weakref
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.data import pipeline
from sd_tf.errors import InputError
from sd_tf.images import to_unit


def fetch(indices, epoch):
    return {
        "index": indices,
        "epoch": np.full(len(indices), epoch, np.int32),
        "picture": np.broadcast_to(indices[:, None, None], (len(indices), 2, 3)).astype(np.float32),
        "caption": np.array([f"number {i}" for i in indices], object),
    }


def batches(count, first_step=0, seed=0, num_examples=10, batch_size=4):
    dataset = pipeline.stream(fetch, num_examples, batch_size, seed, first_step)
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


@pytest.mark.parametrize("period", [2, 10, 1000, 5000])
def test_a_fair_sample_has_every_kind_as_often_as_the_data_set_has(period):
    """Kinds that follow each other as in class folders, or alternate as in drawn garments."""
    chosen = pipeline.fair_sample(range(10_000), 1000)
    assert len(set(chosen)) == 1000 and (np.diff(chosen) > 0).all()
    number = 10_000 // period
    for kinds in (np.arange(10_000) // number, np.arange(10_000) % period):
        share = (kinds[chosen] < period // 2).mean()
        assert share == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)  # four deviations of the binomial


def test_a_fair_sample_of_few_is_all_of_them():
    np.testing.assert_array_equal(pipeline.fair_sample(range(5), 2048), np.arange(5))


def test_every_epoch_visits_each_example_once():
    rows = batches(20)  # 80 rows: 8 epochs of 10 in batches of 4, so that every other epoch is straddled
    index = np.concatenate([b["index"] for b in rows])
    epoch = np.concatenate([b["epoch"] for b in rows])
    np.testing.assert_array_equal(epoch, np.repeat(np.arange(8), 10))
    orders = index.reshape(8, 10)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(10), (8, 1)))
    assert len({tuple(order) for order in orders}) == 8


def test_values_of_a_row_stay_together():
    for b in batches(5):
        np.testing.assert_array_equal(b["picture"][:, 1, 2], b["index"])
        assert [text.decode() for text in b["caption"]] == [f"number {i}" for i in b["index"]]


@pytest.mark.parametrize("first_step", [1, 2, 7])
def test_a_resumed_stream_continues_with_the_batches_it_would_have_seen(first_step):
    for resumed, seen in zip(batches(4, first_step), batches(first_step + 4)[first_step:], strict=True):
        for key in seen:
            np.testing.assert_array_equal(resumed[key], seen[key])


def test_a_batch_may_be_larger_than_an_epoch():
    (b,) = batches(1, num_examples=3, batch_size=8)
    np.testing.assert_array_equal(b["epoch"], [0, 0, 0, 1, 1, 1, 2, 2])
    assert sorted(b["index"][:3]) == sorted(b["index"][3:6]) == [0, 1, 2]


def test_seeds_give_unrelated_orders():
    first, second = (batches(1, seed=s, num_examples=1000, batch_size=1000)[0]["index"] for s in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(1000)  # four standard deviations
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 4 / np.sqrt(1000)


def test_shapes_and_dtypes_are_static():
    spec = pipeline.stream(fetch, 10, 4, seed=0).element_spec
    assert spec["index"] == tf.TensorSpec((4,), tf.int64)
    assert spec["picture"] == tf.TensorSpec((4, 2, 3), tf.float32)
    assert spec["caption"] == tf.TensorSpec((4,), tf.string)


@pytest.mark.parametrize(
    "wrong", [{"num_examples": 0}, {"batch_size": 0}, {"batch_size": -4}, {"seed": -1}, {"first_step": -1}]
)
def test_impossible_streams_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"{name} is {value}"):
        pipeline.stream(fetch, **({"num_examples": 10, "batch_size": 4, "seed": 0} | wrong))


def test_all_bytes_survive_the_unit_range():
    every = np.arange(256, dtype=np.uint8)
    unit = to_unit(every)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, np.linspace(-1, 1, 256), atol=1e-6)
    np.testing.assert_array_equal(pipeline.to_uint8(unit), every)


def test_to_uint8_rounds_and_clips():
    np.testing.assert_array_equal(pipeline.to_uint8([-3.0, -0.9999, 0.9999, 3.0]), [0, 0, 255, 255])
    halves = Counter(pipeline.to_uint8(np.array([0.6, -0.6]) / 127.5).tolist())
    assert halves == {128: 1, 127: 1}  # 127.5 + 0.6 and 127.5 - 0.6, to the nearest


def test_a_stream_that_is_gone_lets_go_of_the_data_and_one_in_use_does_not(capfd):
    class Source:
        def fetch(self, indices, epoch):
            return fetch(indices, epoch)

    source = Source()
    dataset, there = pipeline.stream(source.fetch, 10, 4, 0).map(lambda batch: batch["index"]), None
    there, source = weakref.ref(source), None
    iterator = iter(dataset)
    first = next(iterator)
    del dataset
    gc.collect()
    assert there() is not None
    found = np.concatenate([first, *(next(iterator) for _ in range(4))])
    assert Counter(found.tolist()) == dict.fromkeys(range(10), 2)  # two epochs
    del iterator
    gc.collect()
    assert there() is None
    assert capfd.readouterr().err == ""


def test_a_graph_that_reads_a_stream_that_is_gone_fails():
    kept = [pipeline.stream(lambda *arguments: {"index": fetch(*arguments)["index"]}, 10, 4, 0)]

    @tf.function
    def total():
        indices = kept[0].take(3).map(lambda batch: batch["index"])
        return indices.reduce(np.int64(0), lambda before, more: before + tf.reduce_sum(more))

    assert total() > 0
    kept.clear()
    gc.collect()
    with pytest.raises(tf.errors.OpError):
        total()
