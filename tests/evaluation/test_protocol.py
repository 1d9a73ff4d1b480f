import copy

import pytest

from sd_tf.errors import InputError
from sd_tf.evaluation.protocol import Score, check_comparable


def report(model="a", **protocol):
    own = {"extractor": "judge", "samples": 100, "steps": 20} | protocol
    return {"model": model, "scores": {"distance": Score(1.0, "lower", own).to_json()}}


def test_reports_of_one_protocol_are_comparable_and_whatever_only_one_has_does_not_matter():
    other = report("b")
    other["scores"]["another"] = Score(1.0, "lower", {"samples": 3}).to_json()
    check_comparable([report(), other, copy.deepcopy(other)])


@pytest.mark.parametrize(
    "difference", [{"extractor": "another"}, {"samples": 99}, {"steps": 10}, {"resize": "bilinear"}]
)
def test_reports_of_different_protocols_refuse_to_be_compared(difference):
    name, value = next(iter(difference.items()))
    with pytest.raises(InputError, match=f"distance of a and of b .*{name} is .*{value!r}.*--compare"):
        check_comparable([report(), report("b", **difference)])


def test_what_is_compared_may_differ():
    check_comparable([report(), report("b", steps=10)], varied=["steps"])
    with pytest.raises(InputError, match="samples"):
        check_comparable([report(), report("b", steps=10, samples=1)], varied=["steps"])


def test_scores_that_the_first_report_lacks_are_compared_between_the_others():
    first, *others = report("a"), report("b"), report("c", samples=99)
    first["scores"]["another"] = first["scores"].pop("distance")
    with pytest.raises(InputError, match="distance of b and of c cannot be compared: samples is 100 and 99"):
        check_comparable([first, *others])


def test_sizes_differ_where_both_are_said():
    check_comparable([report(), report("b", size=32)])  # of an older report none is known
    with pytest.raises(InputError, match="size is 64 and 32"):
        check_comparable([report(size=64), report("b", size=32)])
    check_comparable([report(size=64), report("b", size=32)], varied=["size"])
