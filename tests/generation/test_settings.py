"""Settings that a model recommends: what a caller gives wins, and what was chosen together goes together."""

import json

import pytest

from sd_tf.errors import InputError
from sd_tf.generation.settings import FILE, Settings, read_settings, write_settings

FOUND = Settings(
    steps=8,
    guidance_scale=3.0,
    guidance_interval=(0.35, 1.0),
    sampler="unipc",
    karras=True,
    guidance_rescale=0.1,
)


def test_what_is_given_wins():
    assert FOUND.replaced() == FOUND
    assert FOUND.replaced(steps=30, karras=None).steps == 30
    assert FOUND.replaced(steps=30).sampler == "unipc"


def test_what_was_chosen_together_is_left_out_together():
    by_ddim = FOUND.replaced(sampler="ddim")
    assert not by_ddim.karras and by_ddim.guidance_interval == (0.35, 1.0)
    stronger = FOUND.replaced(guidance_scale=5.0)
    assert stronger.guidance_interval == (0.0, 1.0) and stronger.guidance_rescale == 0 and stronger.karras
    assert FOUND.replaced(guidance_scale=5.0, guidance_interval=(0.2, 1)).guidance_interval == (0.2, 1)
    assert FOUND.replaced(guidance_interval=(0.2, 1)).guidance_scale == 3.0
    with pytest.raises(InputError, match="eta is 0.5, but sampler 'unipc' takes none"):
        FOUND.replaced(eta=0.5)


def test_the_file_of_a_folder_holds_them(tmp_path):
    assert read_settings(tmp_path, Settings(steps=7)) == Settings(steps=7)
    write_settings(tmp_path, FOUND, {"found_by": "a command", "distances": {"frechet_distance": 2.5}})
    assert read_settings(tmp_path, Settings(steps=7)) == FOUND
    (tmp_path / FILE).write_text('{"guidance_scale": 2}')
    assert read_settings(tmp_path, Settings(steps=7)) == Settings(steps=7, guidance_scale=2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"guidance": 2}, "unknown setting 'guidance': did you mean 'guidance_"),
        ({"steps": 20, "sampler": "dimm"}, "unknown sampler 'dimm'"),
        ({"guidance_scale": 1e9}, "guidance_scale is 1000000000.0: give a number from 0 to 1000"),
        ({"guidance_interval": [1]}, "guidance_interval is"),
        ({"karras": 1}, "karras is 1: give True or False"),
        ({"steps": 2.5}, "steps is 2.5: give a whole number"),
        ({"timestep_spacing": "lead"}, "unknown timestep_spacing 'lead'"),
    ],
    ids=str,
)
def test_a_damaged_file_is_named(tmp_path, values, said):
    (tmp_path / FILE).write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"{FILE}: .*{said}"):
        read_settings(tmp_path, Settings())


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "model" / FILE).symlink_to("../other.json")
    with pytest.raises(InputError, match="is a link out of its folder"):
        read_settings(tmp_path / "model", Settings())
