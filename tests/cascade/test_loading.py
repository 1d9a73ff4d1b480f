"""Folders of cascades that are damaged, hostile or of another kind get one clear error."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import sd_tf
from sd_tf import families
from tests.cascade.conftest import tiny_cascade

SCHEDULE = "base/scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade") / "model"
    tiny_cascade(length=20).save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def changed(file, **values):
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | values))


def test_a_folder_holds_the_text_encoder_once_and_its_length(saved):
    assert (saved / "base" / "text_encoder").is_dir() and not (saved / "sr2" / "text_encoder").exists()
    model = sd_tf.load(saved)
    assert model.text_encoder.length == 20 and model.stages[1].augment_level == 100


def test_networks_are_read_when_they_are_first_used(saved):
    model = sd_tf.load(saved)
    assert model.stages[0].precision is None and model.image_size == (16, 16)
    model.generate("a dress", steps=1, stages=1)
    assert model.stages[0].precision == "float32" and model.stages[1].precision is None


def test_stages_of_other_models_follow(saved, tmp_path):
    """DeepFloyd's stages are models of their own: together they draw what the whole cascade draws."""
    second = tmp_path / "second"
    shutil.copytree(saved / "sr2", second)  # as its hub's folders, but that its text encoder is not wanted
    model = sd_tf.load(saved / "base", followed_by=[second])
    assert [stage.is_super_resolution for stage in model.stages] == [False, True]
    settings = {"steps": 2, "seed": 3, "super_resolution": {"steps": 2}, "augment_level": 100}
    whole = sd_tf.load(saved)
    np.testing.assert_array_equal(
        model.generate("a dress", engine="tensorflow", **settings),
        whole.generate("a dress", engine="tensorflow", **settings),
    )
    model.save(tmp_path / "joined")
    assert len(sd_tf.load(tmp_path / "joined").stages) == 2


@pytest.mark.parametrize("followers, message", [
    (["{saved}/base"], "base draws from text: followed_by is for models that enlarge"),
    (3, "followed_by is 3: give a list of names, folders or hub ids"),
    ([5], r"followed_by is \[5\]: give a list of names, folders or hub ids"),
    (["{saved}/nothing"], "no file or folder .*nothing"),
    (["{saved}/sr2"] * 8, "followed_by makes 9 stages, of which 8 are the most"),
])  # fmt: skip
def test_what_cannot_follow(saved, followers, message):
    if isinstance(followers, list):
        followers = [each.format(saved=saved) if isinstance(each, str) else each for each in followers]
    with pytest.raises(sd_tf.InputError, match=message):
        sd_tf.load(saved / "base", followed_by=followers)


def test_a_model_that_is_followed_by_others_draws_from_text(saved):
    families.check(saved / "base", from_text=True, followed_by=[saved / "sr2"])


def test_nothing_follows_a_latent_model(saved):
    with pytest.raises(sd_tf.InputError, match="followed_by is for cascades, and fashion-mnist is none"):
        sd_tf.load("fashion-mnist", followed_by=[saved / "sr2"])


def test_a_folder_is_checked_without_keras_and_tensorflow(saved):
    program = (
        "import sys, sd_tf.families\n"
        "sd_tf.families.check(sys.argv[1])\n"
        "sys.exit(f'imported {found}' if (found := {'keras', 'tensorflow'} & set(sys.modules)) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(saved)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("values, message", [
    ({"stages": []}, r"stages is \[\], expected base, sr2 and so on"),
    ({"stages": ["base", "../../etc"]}, "stages is .*, expected base, sr2 and so on"),
    ({"stages": 3}, "stages is 3, expected base, sr2 and so on"),
    ({"stages": "base"}, "stages is 'base', expected"),
    ({"stages": ["base"] * 10**5}, "stages is .*, expected base, sr2 and so on"),
    ({"stages": {"base": 1}}, "stages is .*, expected"),
    ({"augment_levels": 3}, "augment_levels is 3, expected an object"),
    ({"augment_levels": {"sr2": "much"}}, "the augmentation level of sr2 is 'much', not a timestep"),
    ({"augment_levels": {"sr2": 5000}}, "the augmentation level is 5000, but its schedule has 1000"),
])  # fmt: skip
def test_a_bad_index_is_refused(folder, values, message):
    changed(folder / "model_index.json", **values)
    with pytest.raises(sd_tf.InputError, match=message):
        sd_tf.load(folder)


@pytest.mark.parametrize("file, values, message", [
    ("base/model_index.json", {"_class_name": "FluxPipeline"}, "a 'FluxPipeline' is no stage of a cascade"),
    ("sr2/unet/config.json", {"in_channels": 3}, "the UNet has 3 and 6 channels: give 6"),
    ("base/unet/config.json", {"encoder_hid_dim": 99}, "reads text states 99 wide, the text .* 24"),
    ("sr2/unet/config.json", {"sample_size": 4096}, "a layer takes .* GB for one picture: 4 GB is the"),
    ("base/unet/config.json", {"down_block_types": []}, "down_block_types has 0 entries for 2"),
    ("base/unet/config.json", {"attention_head_dim": []}, "attention_head_dim has 0 entries for 2"),
    ("base/unet/config.json", {"up_block_types": ["UpBlock2D"] * 2}, "unknown up_block_types 'UpBlock2D'"),
    ("sr2/unet/config.json", {"sample_size": 20}, r"draws \(20, 20\), no whole multiple of the \(8"),
    (SCHEDULE, {"sample_max_value": "x"}, "sample_max_value is 'x', expected"),
    (SCHEDULE, {"dynamic_thresholding_ratio": 7}, "dynamic_thresholding_ratio is 7"),
    (SCHEDULE, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
])  # fmt: skip
def test_parts_that_do_not_fit_are_refused(folder, file, values, message):
    changed(folder / file, **values)
    with pytest.raises(sd_tf.InputError, match=message):
        sd_tf.load(folder)


def test_a_stage_without_a_text_encoder_says_where_to_look(folder):
    with pytest.raises(sd_tf.InputError, match="has no text encoder: it is the stage of a cascade"):
        sd_tf.load(folder / "sr2")


def test_links_out_of_the_folder_are_not_followed(folder, tmp_path):
    shutil.move(folder / "sr2" / "unet", tmp_path / "elsewhere")
    (folder / "sr2" / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(sd_tf.InputError, match="is a link out of its folder"):
        sd_tf.load(folder)


def test_options_of_other_models_are_refused(folder):
    with pytest.raises(sd_tf.InputError, match="prediction_type is 'epsilon', but a cascade's files say"):
        sd_tf.load(folder, prediction_type="epsilon")


def test_a_save_that_fails_leaves_the_old_model_whole(folder, monkeypatch):
    from sd_tf.cascade import folder as folders

    before = sd_tf.load(folder).generate("a dress", steps=1, stages=1)
    model = tiny_cascade(length=20, shaken=0.2)

    def full(*_):
        raise sd_tf.InputError("no space left")

    monkeypatch.setattr(folders, "save_index", full)
    with pytest.raises(sd_tf.InputError, match="no space left"):
        model.save(folder)
    monkeypatch.undo()
    np.testing.assert_array_equal(sd_tf.load(folder).generate("a dress", steps=1, stages=1), before)
