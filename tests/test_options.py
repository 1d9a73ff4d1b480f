"""Options check themselves, and errors name what the user has typed: an argument, or a flag."""

import json
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.options import Options, option


@dataclass(frozen=True)
class Some(Options):
    dataset: str = option("a", "what to learn", choices=("a", "b", "hub:<id>"), name="source")
    steps: int | None = option(None, "how many", at_least=1, name="num_steps")
    decay: float = option(0.5, "of an average", at_least=0, below=1, example="0.9999")
    rate: float | None = option(None, "of learning", above=0)
    share: float = option(0.5, "of examples", at_least=0, at_most=1)
    kind: str | None = option(None, "of tuning", choices=("lora", "word"))
    rank: int | None = option(None, "of a LoRA", at_least=1, needs=("kind", "lora"))
    weight: float | None = option(None, "of whatever kind", at_least=0, needs=("kind", None))
    flip: bool = option(False, "mirrors", identifies=False)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dataset": "c"}, "unknown source 'c': .*Valid: a, b, hub:<id>."),
        ({"dataset": "hub:"}, "unknown source 'hub:'"),
        ({"steps": 0}, "num_steps is 0: give 1 or more"),
        ({"steps": 1.5}, "num_steps is 1.5: give a whole number"),
        ({"steps": True}, "num_steps is True: give a whole number"),
        ({"decay": 1}, "decay is 1: give 0 or more, below 1, such as 0.9999"),
        ({"decay": float("nan")}, "decay is nan: give 0 or more"),
        ({"decay": None}, "decay is None: give a number"),
        ({"rate": 0}, "rate is 0: give a number above 0"),
        ({"rate": float("inf")}, "rate is inf: give a number above 0"),
        ({"share": 1.1}, "share is 1.1: give 0 to 1"),
        ({"rank": 4}, "rank needs kind lora: add it, or leave rank out"),
        ({"rank": 4, "kind": "word"}, "rank needs kind lora: add it, or leave rank out"),
        ({"weight": 1.0}, "weight needs kind: add it, or leave weight out"),
        ({"flip": 1}, "flip is 1: give True or False"),
        ({"dataset": 3}, "source is 3: give a string"),
    ],
)
def test_a_value_that_an_option_does_not_take_is_refused_in_one_line(values, said):
    with pytest.raises(InputError, match=f"^{said}"):
        Some(**values)


def test_values_that_an_option_takes_are_kept_as_they_are():
    some = Some("hub:x/y", 1, 0, 1e-3, 1, "lora", 4, 1.0, True)
    assert (some.dataset, some.steps, some.decay, some.rank, some.flip) == ("hub:x/y", 1, 0, 4, True)
    assert Some().given == {} and Some(steps=3, flip=True).given == {"steps": 3, "flip": True}
    assert "flip" not in Some().identity and "steps" in Some().identity


def test_numbers_of_other_libraries_become_pythons_own_which_json_has():
    some = Some(np.str_("hub:x/y"), steps=np.int64(3), share=np.float32(0.5), rate=Fraction(1, 2))
    assert some == Some("hub:x/y", steps=3, share=0.5, rate=0.5)
    assert json.loads(json.dumps(some.identity))["rate"] == 0.5
    assert Some(steps=10**400).steps == 10**400


def test_an_error_names_the_argument_in_python_and_the_flag_on_the_command_line():
    with pytest.raises(InputError) as caught:
        Some(steps=0)
    assert str(caught.value) == "num_steps is 0: give 1 or more"
    assert str(caught.value.with_flags()) == "--steps is 0: give 1 or more"
    with pytest.raises(InputError) as caught:
        Some(rank=4)
    assert str(caught.value.with_flags()) == "--rank needs --kind lora: add it, or leave --rank out"
