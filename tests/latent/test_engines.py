"""OpenVINO beside TensorFlow: the same pictures, and conversions that are kept while weights stay."""

import numpy as np
import pytest

import sd_tf
from sd_tf.errors import InputError

pytest.importorskip("openvino")
STEPS = 3


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    made = tmp_path_factory.mktemp("engines") / "model"
    tiny_model.save(made)
    return made


@pytest.fixture(scope="module")
def model(folder):
    return sd_tf.load(folder)


def draw(model, engine, prompt="a red dress", **settings):
    return model.generate(prompt, **{"steps": STEPS, "engine": engine, "progress": False} | settings)


def apart(ours, theirs):
    return np.abs(ours.astype(int) - theirs.astype(int)).max()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_images": 5, "batch_size": 2},
        {"guidance_scale": 1.0, "seed": 7},
        {"prompt": ["a blue bag", "a shirt"], "negative_prompt": "red", "sampler": "ddpm"},
    ],
    ids=["one", "five in twos", "unguided", "two prompts"],
)
def test_both_engines_draw_the_same_pictures(model, settings):
    ours, reference = draw(model, "openvino", **settings), draw(model, "tensorflow", **settings)
    assert ours.shape == reference.shape and apart(ours, reference) <= 2
    assert reference.std() > 20


def test_conversions_are_kept_beside_the_model_and_used_again(model, folder, monkeypatch):
    draw(model, "openvino")
    (kept,) = (folder / "openvino").iterdir()
    names = {"encode.xml", "encode.bin", "denoise.xml", "denoise.bin", "decode.xml", "decode.bin"}
    assert {file.name for file in kept.iterdir()} == names
    monkeypatch.setattr("sd_tf.latent.engines.write_conversion", lambda *_: pytest.fail("converted again"))
    again = sd_tf.load(folder)
    assert again.engines["auto"] is again.engines["openvino"]  # of a model that is loaded
    assert apart(draw(again, "openvino"), draw(model, "openvino")) == 0


def test_a_model_that_is_trained_on_is_converted_anew(folder):
    model = sd_tf.load(folder)
    before = draw(model, "openvino")
    (kept,) = (folder / "openvino").iterdir()
    for variable in model.unet.trainable_variables:
        variable.assign(0.5 * variable)
    assert apart(draw(model, "openvino"), draw(model, "tensorflow")) <= 2
    assert apart(draw(model, "openvino"), before) > 2
    (now,) = (folder / "openvino").iterdir()  # the conversion of the old weights is gone
    assert now.name != kept.name


def test_a_folder_that_cannot_be_written_is_no_hindrance(folder):
    model = sd_tf.load(folder)
    (folder / "in the way").write_text("")
    model.engines.folder = folder / "in the way" / "openvino"
    assert apart(draw(model, "openvino"), draw(model, "tensorflow")) <= 2


def test_a_model_made_in_memory_is_drawn_by_tensorflow(tiny_model):
    assert tiny_model.engines["auto"] is tiny_model.engines["tensorflow"]


def test_what_openvino_cannot_do_is_said_with_the_way_out(model, folder, monkeypatch):
    with pytest.raises(InputError, match="engine 'torch'.*tensorflow"):
        draw(model, "torch")
    half = sd_tf.load(folder, dtype="mixed_bfloat16")
    with pytest.raises(InputError, match="float32 models, this one computes in mixed_bfloat16"):
        draw(half, "openvino")
    assert half.engines["auto"] is half.engines["tensorflow"]
    side = model.unet.config.latent_size[0] + 2
    latents = np.random.default_rng(0).standard_normal((1, side, side, 4)).astype("float32")
    with pytest.raises(InputError, match="engine 'openvino' draws .*take 'tensorflow'"):
        draw(model, "openvino", latents=latents)
    assert draw(model, "auto", latents=latents).shape[1] > draw(model, "auto").shape[1]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'sd_tf\[openvino\]'"):
        draw(model, "openvino")


def test_warming_up_leaves_nothing_to_compile(folder, monkeypatch):
    model = sd_tf.load(folder)
    model.warmup(num_images=3, engine="openvino")
    compiled = []
    import openvino

    monkeypatch.setattr(openvino.Core, "compile_model", lambda *arguments: compiled.append(arguments))
    draw(model, "openvino", num_images=3)
    assert not compiled
