"""OpenVINO beside TensorFlow: the same pictures, and conversions that are kept while weights stay."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sd_tf
from sd_tf.errors import InputError
from sd_tf.generation.conversions import Origin
from sd_tf.generation.engines import kept_conversion

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


def test_a_model_read_under_a_strategy_draws_the_same_pictures(model, folder):
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        mirrored = sd_tf.load(folder)
    for engine in ("tensorflow", "openvino"):
        np.testing.assert_array_equal(draw(mirrored, engine), draw(model, engine))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where conversions are kept, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sd_tf" / "conversions"


def test_conversions_are_kept_in_the_users_cache_and_used_again(folder, cache, monkeypatch):
    model, before = sd_tf.load(folder), sorted(folder.iterdir())
    pictures = draw(model, "openvino")
    (kept,) = cache.iterdir()
    parts = {f"{part}.{ending}" for part in ("encode", "denoise", "decode") for ending in ("xml", "bin")}
    assert {file.name for file in kept.iterdir()} == parts | {"conversion.json"}
    assert sorted(folder.iterdir()) == before  # nothing beside the model
    monkeypatch.setattr(
        "sd_tf.generation.engines.write_conversion", lambda *_: pytest.fail("converted again")
    )
    again = sd_tf.load(folder)
    assert again.engines["auto"] is again.engines["openvino"]  # of a model that is loaded
    assert apart(draw(again, "openvino"), pictures) == 0


def test_a_model_that_is_trained_on_is_converted_again(folder, cache):
    model = sd_tf.load(folder)
    before = draw(model, "openvino")
    variable = model.text_encoder.trainable_variables[0]
    changed = np.array(variable.value)
    row = changed[model.tokenizer(["red"])[0, 1]]  # as textual inversion does
    row += np.random.default_rng(0).standard_normal(row.shape)
    variable.assign(changed)
    assert apart(draw(model, "openvino"), draw(model, "tensorflow")) <= 2
    assert apart(draw(model, "openvino"), before) > 2
    assert len(list(cache.iterdir())) == 2
    assert apart(draw(sd_tf.load(folder), "openvino"), before) == 0


def test_a_cache_that_cannot_be_written_is_no_hindrance(folder, cache, monkeypatch):
    cache.parent.parent.mkdir()
    cache.parent.write_text("in the way")
    model = sd_tf.load(folder)
    assert apart(draw(model, "openvino"), draw(model, "tensorflow")) <= 2
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("nobody's")))
    model = sd_tf.load(folder)
    assert apart(draw(model, "openvino"), draw(model, "tensorflow")) <= 2


@pytest.mark.parametrize("error", [RuntimeError("basic_ios::clear: iostream error"), OSError(28, "No space")])
def test_where_a_conversion_cannot_be_written_tensorflow_draws(folder, cache, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("sd_tf.generation.engines.write_conversion", full)
    model = sd_tf.load(folder)
    with pytest.raises(InputError, match="cannot write its conversion .*TMPDIR"):
        draw(model, "openvino")
    with pytest.warns(UserWarning, match="cannot write its conversion .*TensorFlow draws instead"):
        drawn = draw(model, "auto")
    assert apart(drawn, draw(model, "tensorflow")) == 0


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
    assert draw(model, "auto", latents=latents).shape[1] > draw(model, "auto").shape[1]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install -c constraints.txt "\.\[openvino\]"'):
        draw(model, "openvino")


def test_warming_up_leaves_nothing_to_compile(folder, monkeypatch):
    model = sd_tf.load(folder)
    model.warmup(num_images=3, engine="openvino")
    compiled = []
    import openvino

    monkeypatch.setattr(openvino.Core, "compile_model", lambda *arguments: compiled.append(arguments))
    draw(model, "openvino", num_images=3)
    assert not compiled


class TestInANewProcess:
    """Drawing with what an engine has kept, without the networks, Keras and TensorFlow."""

    BEGIN = """
import sys, sd_tf
from sd_tf.latent.loading import needs_networks
folder, engine = sys.argv[1:]
print(needs_networks(folder))
model = sd_tf.load(folder)
"""
    CHANGE = """
for variable in model.unet.trainable_variables:
    variable.assign(0.5 * variable)
"""
    DRAW = """
images = model.generate("a red dress", steps=3, engine=engine, progress=False)
print(sorted({"keras", "tensorflow"} & set(sys.modules)))
print(images.tobytes().hex())
"""

    @pytest.fixture(scope="class")
    def kept(self, tiny_model, tmp_path_factory):
        """A model that has been drawn with, and its picture."""
        folder = tmp_path_factory.mktemp("kept") / "model"
        tiny_model.save(folder)
        return folder, draw(sd_tf.load(folder), "openvino")

    def run(self, folder, engine="auto", program=BEGIN + DRAW):
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), engine],
            env=os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        *said, picture = done.stdout.splitlines()
        return said, np.frombuffer(bytes.fromhex(picture), np.uint8).reshape(1, 16, 16, 3)

    def test_neither_keras_nor_tensorflow_is_imported(self, kept):
        folder, before = kept
        said, picture = self.run(folder)
        assert said == ["False", "[]"]
        np.testing.assert_array_equal(picture, before)

    def test_another_engine_reads_the_networks(self, kept):
        folder, before = kept
        said, picture = self.run(folder, "tensorflow")
        assert said == ["False", "['keras', 'tensorflow']"]
        assert apart(picture, before) <= 2

    def test_whoever_asks_for_a_network_may_change_it(self, kept):
        folder, before = kept
        _, picture = self.run(folder, "openvino", self.BEGIN + self.CHANGE + self.DRAW)
        assert apart(picture, before) > 2

    def test_files_that_have_changed_are_read(self, kept):
        folder, before = kept
        parts = ("unet", "text_encoder", "vae")
        for part in parts:
            assert kept_conversion(Origin(folder, parts)) is not None
            assert kept_conversion(Origin(folder, parts, "fp16")) is None
            file = next((folder / part).glob("*.safetensors"))
            state, content = file.stat(), bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
            os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # the same name, size and time
            assert kept_conversion(Origin(folder, parts)) is None
            content[-1] ^= 1
            file.write_bytes(content)
        other = sd_tf.load(folder)
        for variable in other.unet.trainable_variables:
            variable.assign(0.5 * variable)
        other.save(folder)
        said, picture = self.run(folder)
        assert said[0] == "True"
        assert apart(picture, draw(other, "tensorflow")) <= 2 < apart(picture, before)

    def test_a_conversion_of_changed_weights_is_not_taken_for_the_files(self, tiny_model, tmp_path, cache):
        tiny_model.save(tmp_path / "model")
        model = sd_tf.load(tmp_path / "model")
        for variable in model.unet.trainable_variables:
            variable.assign(0.5 * variable)
        draw(model, "openvino")
        said, picture = self.run(tmp_path / "model", "openvino")
        assert said[0] == "True"
        assert apart(picture, draw(tiny_model, "tensorflow")) <= 2


INTERRUPTED = """
import gc, signal, sys
import numpy as np
from sd_tf.generation.engines import read_conversion

def drawing():
    function = read_conversion(sys.argv[1])
    function(*(np.ones(shape, "float32") for shape in [(1, 8, 8, 4)]))
    return function

first, second = drawing(), drawing()
del first
third = drawing()
del second, third
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_models_were_released_is_no_segmentation_fault(folder, cache):
    draw(sd_tf.load(folder), "openvino")
    (decoder,) = cache.glob("*/decode.xml")
    root = str(Path(sd_tf.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(decoder)],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
