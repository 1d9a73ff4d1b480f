import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from sd_tf import graphs as module
from sd_tf.graphs import compiled, parts, parts_of


@pytest.mark.parametrize(("size", "number", "sizes"), [(8, 2, [4, 4]), (7, 3, [2, 2, 3]), (2, 2, [1, 1])])
def test_parts_are_the_whole_in_order_and_of_even_sizes(size, number, sizes):
    whole = {"a": tf.range(size), "b": tf.ones((size, 3))}
    found = parts(whole, number)
    assert [len(part["a"]) for part in found] == [len(part["b"]) for part in found] == sizes
    np.testing.assert_array_equal(np.concatenate([part["a"] for part in found]), np.arange(size))


def test_a_function_in_parts_gives_what_it_gives_whole(monkeypatch):
    def function(x, y):
        return {"sum": x + y, "square": x * x}

    x, y = np.arange(10.0, dtype="float32").reshape(5, 2), np.ones((5, 2), "float32")
    whole = compiled(function)(x, y)
    monkeypatch.setattr(module, "parts_of", lambda number: min(number, 2))
    call = compiled(function)
    for name, value in call(x, y).items():
        np.testing.assert_array_equal(value, whole[name])
    assert call(x[:1], y[:1])["sum"].shape == (1, 2)  # too few to divide


def test_operations_are_divided_unless_each_has_one_core():
    assert parts_of(8) == 1  # in this process TensorFlow has started with its own settings
    module.one_core_for_each_operation()  # too late: nothing is changed
    assert parts_of(8) == 1
    script = (
        "from sd_tf.graphs import *; one_core_for_each_operation();"
        "assert parts_of(1000) == cores() and parts_of(1) == 1 and parts_of(1000, replicas=1000) == 1"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
