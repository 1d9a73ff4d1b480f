import pytest

from sd_tf import evaluate
from sd_tf.errors import InputError


def test_only_data_sets_with_a_judge_are_accepted(tmp_path):
    with pytest.raises(InputError, match="fashion_mnist"):
        evaluate.main(["--dataset", "fashion", "--output", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="--output"):
        evaluate.main(["--output", str(tmp_path / "file" / "report")])
