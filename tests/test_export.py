"""`python -m sd_tf.export`: what it writes draws the model's pictures where there is no sd_tf."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sd_tf import export
from sd_tf.errors import InputError
from sd_tf.generation.settings import Settings, write_settings
from sd_tf.latent.model import LatentDiffusion

PROMPTS = ["a red dress", "a bag, a bag, a bag and another bag", ""]  # the second is read in parts
STEPS = 3
SAVED_MODEL = """
import sys
sys.modules["sd_tf"] = sys.modules["keras"] = None  # neither can be imported
import numpy as np
import tensorflow as tf

folder, output, *prompts = sys.argv[1:]
draw = tf.saved_model.load(folder).signatures["with_negative_prompt" if "-" in prompts else "serving_default"]
options = {"seed": tf.constant(3), "steps": tf.constant(3), "guidance_scale": tf.constant(2.0)}
if "-" in prompts:
    options["negative_prompt"] = tf.constant(prompts[prompts.index("-") + 1 :])
    prompts = prompts[: prompts.index("-")]
files = draw(prompt=tf.constant(prompts), **options)["png"]
np.save(output, np.stack([tf.io.decode_png(file) for file in files]))
"""

WITHOUT = """
import runpy, sys
sys.modules["sd_tf"] = sys.modules["tensorflow"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save(folder)
    return folder


@pytest.fixture(scope="module")
def saved_model(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("saved") / "model"
    export.main(["--model", str(folder), "--output", str(output), "--no-table"])
    return output


@pytest.fixture(scope="module")
def litert(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("litert") / "model"
    export.main(["--model", str(folder), "--output", str(output), "--format", "litert", "--no-table"])
    return output


def drawn(model: LatentDiffusion, prompts, **settings):
    settings = {"seed": 3, "steps": STEPS, "guidance_scale": 2.0, "engine": "tensorflow"} | settings
    return model.generate(prompts, progress=False, **settings).astype(int)


def python(*arguments):
    subprocess.run([sys.executable, *map(str, arguments)], check=True, timeout=300)


def test_a_saved_model_draws_without_sd_tf_and_keras(saved_model, tiny_model, tmp_path):
    prompts = PROMPTS[:2]
    python("-c", SAVED_MODEL, saved_model, tmp_path / "plain.npy", *prompts)
    assert np.abs(np.load(tmp_path / "plain.npy") - drawn(tiny_model, prompts)).max() <= 1
    python("-c", SAVED_MODEL, saved_model, tmp_path / "leaning.npy", *prompts, "-", "a dress", "red")
    expected = drawn(tiny_model, prompts, negative_prompt=["a dress", "red"])
    assert np.abs(np.load(tmp_path / "leaning.npy") - expected).max() <= 1


def test_a_saved_model_has_the_signature_that_it_says(saved_model, tiny_model):
    import tensorflow as tf

    draw = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    inputs = {name: (spec.shape, spec.dtype) for name, spec in draw.structured_input_signature[1].items()}
    assert inputs == {
        "prompt": (tf.TensorShape([None]), tf.string),
        "seed": (tf.TensorShape(None), tf.int32),
        "steps": (tf.TensorShape([]), tf.int32),
        "guidance_scale": (tf.TensorShape([]), tf.float32),
    }

    def files(**changed):
        given = {"prompt": ["a bag"] * 2, "seed": 3, "steps": STEPS, "guidance_scale": 2.0} | changed
        return draw(**{name: tf.constant(value) for name, value in given.items()})["png"].numpy().tolist()

    same, other = files(), files(seed=[3, 4])
    assert same[0] == same[1] == other[0] != other[1]  # one seed for all, or one for each
    assert files(prompt=tf.constant([], tf.string)) == []
    assert np.array_equal(
        tf.io.decode_png(files(steps=500)[0]), drawn(tiny_model, "a bag", steps=500)[0].astype("uint8")
    )
    for changed, message in (
        ({"steps": 0}, "steps is below 1"),
        ({"steps": 1001}, "steps is above 1000"),
        ({"steps": 1000}, "with steps_offset 1, so many steps start past the last timestep"),
        ({"seed": -1}, "seed is below 0"),
        ({"guidance_scale": -1.0}, "guidance_scale is below 0"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            files(**changed)


def test_a_terminal_shows_what_is_being_done_and_a_file_does_not(folder, tmp_path, monkeypatch, capfd):
    command = ["--model", str(folder), "--steps", "1", "--output"]
    export.main([*command, str(tmp_path / "quiet")])
    quiet = capfd.readouterr()
    assert "writing" not in quiet.err and "drawing" not in quiet.err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    export.main([*command, str(tmp_path / "shown")])
    shown = capfd.readouterr()
    for text in (
        "writing the SavedModel [",
        "drawing with the model: picture 5 of 5 [",
        "savedmodel: compiling [",
    ):
        assert text in shown.err
    assert shown.out.splitlines()[0] == str(tmp_path / "shown")
    assert [line[:10] for line in shown.out.splitlines()[2:]] == ["the model ", "savedmodel"]


@pytest.mark.parametrize("kind, allowed", [("float16", 4), ("int8", 60)])
def test_litert_files_draw_without_sd_tf(litert, tiny_model, tmp_path, kind, allowed):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, which runs LiteRT files")
    flags = ["--networks", kind, "--steps", STEPS, "--seed", 3, "--guidance-scale", 2]
    python("-c", WITHOUT, litert / "draw.py", "a red dress", *flags, "--output", tmp_path / "drawn.png")
    difference = np.abs(np.asarray(Image.open(tmp_path / "drawn.png")) - drawn(tiny_model, "a red dress")[0])
    assert difference.max() <= allowed
    assert difference.mean() <= allowed / 4


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--seed", "-1"], "error: seed is -1: give 0 to 4294967295"),
        (["--steps", "0"], "error: steps is 0: give 1 to 1000"),
        (["--steps", "1000"], "error: steps is 1000: give fewer"),
        (["--output", "nowhere/a.png"], "error: --output nowhere/a.png is in no folder that there is"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_one_line(litert, tmp_path, flags, message):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, which runs LiteRT files")
    command = [sys.executable, litert / "draw.py", "a red dress", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_prompt_that_is_cut_is_said_to_be(litert, tiny_model):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, which runs LiteRT files")
    from sd_tf.exporting.draw import Model

    long = "a red dress, a blue bag, a coat"
    number, most = len(tiny_model.tokenizer.ids(long)), tiny_model.tokenizer.max_length - 2
    with pytest.warns(UserWarning, match=f"has {number} tokens: the last {number - most} are cut off"):
        Model(litert, "float16").generate(long, steps=1)


def test_onnx_files_draw_the_same(folder, tiny_model, tmp_path):
    pytest.importorskip("tf2onnx", reason="needs tf2onnx, which writes ONNX files")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs them")
    from sd_tf.exporting.draw import Model

    output = tmp_path / "onnx"
    export.main(["--model", str(folder), "--output", str(output), "--format", "onnx", "--no-table"])
    image = Model(output, "onnx").generate("a red dress", STEPS, 2.0, 3, "a bag")
    expected = drawn(tiny_model, "a red dress", negative_prompt="a bag")[0]
    assert np.abs(image - expected).max() <= 1


def test_the_table_compares_with_the_model(folder, tmp_path, capsys):
    """Drawn by what every export draws by, whatever the model recommends."""
    folder = shutil.copytree(folder, tmp_path / "model")
    recommended = Settings(guidance_scale=5.0, guidance_interval=(0.5, 1.0), sampler="unipc", karras=True)
    write_settings(folder, recommended)
    export.main(["--model", str(folder), "--output", str(tmp_path / "out"), "--steps", "2"])
    header, model, saved = capsys.readouterr().out.splitlines()[1:]
    assert header.split()[:2] == ["MB", "seconds"]
    assert model.startswith("the model")
    name, size, seconds, mean, most = saved.split()
    assert name == "savedmodel" and float(size) > 0 and float(seconds) > 0
    assert float(mean) < 0.1 and int(most) <= 1


def test_bad_input_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="unknown --format 'tflite'"):
        export.main(["--format", "tflite", "--output", str(tmp_path / "out")])
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Dear")
    (tmp_path / "game" / "assets").mkdir(parents=True)  # a name of ours, in somebody else's folder
    (tmp_path / "sketch").mkdir()
    (tmp_path / "sketch" / "draw.py").write_text("print('mine')")
    (tmp_path / "forged").mkdir()
    (tmp_path / "forged" / "draw.py").write_text("print('mine')")
    (tmp_path / "forged" / "sd_tf.json").write_text('{"made_by": "me"}')
    for output, message in (
        (tmp_path / "sketch", "holds something else"),
        (tmp_path / "forged", "holds something else"),
        (tmp_path / "letters", "holds something else"),
        (tmp_path / "game", "holds something else"),
        (tmp_path / "letters" / "dear.txt", "not a folder that you may write to"),
    ):
        with pytest.raises(InputError, match=message):
            export.main(["--model", str(folder), "--output", str(output)])
    assert (tmp_path / "letters" / "dear.txt").read_text() == "Dear"
    assert (tmp_path / "game" / "assets").is_dir()
    for name in ("sketch", "forged"):
        assert (tmp_path / name / "draw.py").read_text() == "print('mine')"
    with pytest.raises(InputError, match="--steps is 0"):
        export.main(["--model", str(folder), "--output", str(tmp_path / "out"), "--steps", "0"])
    assert not (tmp_path / "out").exists()
