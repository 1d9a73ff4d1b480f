"""`python -m sd_tf.generate`: the files it writes, and the one line that bad input gets."""

import errno
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import sd_tf
from sd_tf import commandline
from sd_tf.errors import InputError
from sd_tf.generate import main
from sd_tf.generation.settings import Settings
from sd_tf.images import save_png, sheet
from sd_tf.latent.clip_guidance import CLIPGuidance
from sd_tf.latent.initial_noise import InitialNoise
from sd_tf.lora.adaptations import LowRank
from sd_tf.lora.files import write_lora
from sd_tf.text.prompt_syntax import SYNTAXES, without_loras


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "model"
    tiny_model.save(folder)
    return folder


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


def texts(file):
    with Image.open(file) as image:
        return image.text


def test_prompts_are_put_into_the_words_of_captions(folder, tmp_path, capsys):
    flags = ["--steps", "1", "--seed", "5", "--model", str(folder)]
    main(["a blue bag", "--output", str(tmp_path / "plain"), *flags])
    (tmp_path / "captions.txt").write_text("a blue bag\n")
    capsys.readouterr()
    reword = ["--reword-to", str(tmp_path / "captions.txt")]
    main(["a red dress", "--output", str(tmp_path / "out"), *reword, *flags])
    file = tmp_path / "out" / "a-blue-bag-5.png"
    assert capsys.readouterr().out.splitlines() == ["a red dress: drawn as a blue bag", str(file)]
    np.testing.assert_array_equal(pixels(file), pixels(tmp_path / "plain" / "a-blue-bag-5.png"))
    assert texts(file)["prompt"] == "a blue bag"
    with pytest.raises(InputError, match="--reword-by is for --reword-to: name a file"):
        main(["a red dress", "--reword-by", "clip-mini", *flags])
    main(["a red dress", "--output", str(tmp_path / "again"), "--reword-to", str(tmp_path), *flags])
    assert (tmp_path / "again" / file.name).is_file()
    for name, missing in (("none.txt", "none.txt"), ("out", "out/captions.txt")):
        with pytest.raises(InputError, match=f"--reword-to .*{name}: there is no file .*{missing}: name one"):
            main(["a red dress", "--model", "none", "--reword-to", str(tmp_path / name)])  # before it loads
    with pytest.raises(InputError, match="--reword-to does not go with --upscale"):
        main(["--upscale", str(file), *reword, *flags])


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_captions_are_drawn_as_plain_text_in_each_syntax(folder, tiny_model, tmp_path, capsys, syntax):
    caption, flags = "(a:2) b", ["--steps", "1", "--model", str(folder)]  # six tokens, which a row holds
    (tmp_path / "captions.txt").write_text(f"{caption}\n")
    reword = ["--reword-to", str(tmp_path / "captions.txt"), "--prompt-syntax", syntax]
    main(["(blue:2) bag", "--output", str(tmp_path), *reword, *flags])
    said, file = capsys.readouterr().out.splitlines()
    assert said == f"(blue:2) bag: drawn as {caption}"
    assert file == str(tmp_path / "a-2-b-0.png")
    assert texts(file)["prompt"] == caption
    assert texts(file)["parameters"].splitlines()[0] == r"\(a:2\) b"  # as A1111 reads it
    states = tiny_model.encode_prompts([caption])  # as in training
    empty = tiny_model.encode_prompts([""])
    drawn = tiny_model.generate(prompt_embeds=states, negative_prompt_embeds=empty, steps=1)
    assert np.abs(pixels(file).astype(int) - drawn[0]).max() <= 1
    weighted = tiny_model.generate(caption, prompt_syntax=syntax, steps=1)
    assert np.abs(weighted.astype(int) - drawn).max() > 1


def test_reworded_prompts_are_compared_by_their_words_and_keep_their_loras(tmp_path, monkeypatch, capsys):
    asked = []

    class Model:
        recommended = Settings()

        def text_reader(self):
            return "the model's"

        def generate(self, prompts, num_images, *, prompt_syntax, negative_prompt, seed, engine, **settings):
            asked.append((prompts, prompt_syntax))
            return np.zeros((len(prompts), 8, 8, 3), np.uint8)

    class Reword:
        def __init__(self, encoder, captions):
            assert (encoder, captions) == ("the model's", ["a (red) dress"])

        def __call__(self, prompts):
            asked.append(prompts)
            return ["a (red) \x1bdress"] * len(prompts)

    monkeypatch.setattr("sd_tf.generate._load", lambda flags: Model())
    monkeypatch.setattr("sd_tf.text.nearest_captions.NearestCaptions", Reword)
    (tmp_path / "captions.txt").write_text("a (red) dress\n")
    flags = ["--prompt-syntax", "a1111", "--reword-to", str(tmp_path), "--output", str(tmp_path)]
    prompts = ["a ((crimson)) dress<lora:one:0.00001>", "a [red] dress <lora:one:0.00001>"]
    main([*prompts, *flags])
    drawn = "a \\(red\\) \x1bdress<lora:one:0.00001>"
    assert asked == [["a crimson dress", "a red dress"], ([drawn] * 2, "a1111")]
    assert without_loras([drawn]) == (["a \\(red\\) \x1bdress"], {"one": 0.00001})
    files = [tmp_path / f"a-red-dress-{seed}.png" for seed in (0, 1)]  # of one prompt, drawn twice
    assert [texts(file)["prompt"] for file in files] == ["a (red) \x1bdress"] * 2
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [f"{prompt}: drawn as a (red) \\x1bdress" for prompt in prompts]


def test_files_of_captions_that_are_none_are_named_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("sd_tf.generate._load", lambda flags: pytest.fail("was loaded"))
    monkeypatch.setattr("sd_tf.text.nearest_captions.LARGEST", 1000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "bytes").write_bytes(b"a dress\n\xff\xfe")
    (tmp_path / "large").write_text("a dress\n" * 200)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "captions.txt").symlink_to("/etc/passwd")
    for name, message in {
        "pipe": "pipe is a named pipe: a regular file is expected",
        "empty": "empty has no captions: write one in each line",
        "bytes": "bytes is no text in UTF-8",
        "large": "large has 1,600 bytes, of which 1,000 are the most",
        "model": "captions.txt is a link out of its folder",
        "a" * 300: "there is no file a+: name one with a caption in each line",
    }.items():
        name = name if len(name) > 255 else str(tmp_path / name)
        with pytest.raises(InputError, match=f"--reword-to.*{message}"):
            main(["a dress", "--output", str(tmp_path / "out"), "--reword-to", name])
    (tmp_path / "captions.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="--reword-to .*: there is no file .*captions.txt"):
        main(["a dress", "--reword-to", str(tmp_path / "captions.txt")])
    (tmp_path / "line").write_text("a dress\n")
    with pytest.raises(InputError, match="unknown text encoder 'minilm'"):
        main(["a dress", "--reword-to", str(tmp_path / "line"), "--reword-by", "minilm"])
    assert not (tmp_path / "out").exists()


def test_one_prompt_is_one_file_with_its_settings_inside(folder, tiny_model, tmp_path, capsys):
    flags = ["--steps", "2", "--seed", "5", "--guidance-scale", "2.5", "--negative-prompt", "blue"]
    main(["a red dress", "--model", str(folder), "--output", str(tmp_path / "new" / "out"), *flags])
    file = tmp_path / "new" / "out" / "a-red-dress-5.png"
    assert capsys.readouterr().out.splitlines() == [str(file)]
    assert list(file.parent.iterdir()) == [file]
    expected = tiny_model.generate("a red dress", steps=2, seed=5, guidance_scale=2.5, negative_prompt="blue")
    assert np.abs(pixels(file).astype(int) - expected[0]).max() <= 1
    said = texts(file)
    assert said.pop("parameters").splitlines()[:2] == ["a red dress", "Negative prompt: blue"]
    assert said == {
        "prompt": "a red dress",
        "seed": "5",
        "steps": "2",
        "guidance_scale": "2.5",
        "guidance_interval": "[0.0, 1.0]",
        "guidance_rescale": "0.0",
        "negative_prompt": "blue",
        "sampler": "ddim",
        "karras": "False",
        "eta": "0.0",
        "model": str(folder),
    }


def test_loras_change_what_is_drawn_by_their_weights(folder, tmp_path, capsys):
    model = sd_tf.load(folder)
    adaptations = model.adaptations
    for number, target in enumerate(("to_v", "to_out.0")):
        modules = [name for name in adaptations.modules if name.endswith(target)]
        generator = np.random.default_rng(number)
        changes = {
            name: LowRank(
                *(generator.normal(size=size).astype("float32") for size in ((2, inputs), (outputs, 2)))
            )
            for name in modules
            for outputs, inputs in [adaptations.shape(name)]
        }
        write_lora(tmp_path / f"{number}.safetensors", changes)
    files = [str(tmp_path / f"{number}.safetensors") for number in (0, 1)]
    settings = ["a dress", "--model", str(folder), "--output", str(tmp_path), "--steps", "2"]
    main([*settings, "--lora", *files, "--lora-weight", "0.5", "0"])
    drawn, said = pixels(tmp_path / "a-dress-0.png"), texts(tmp_path / "a-dress-0.png")
    plain = model.generate("a dress", steps=2)
    model.load_lora(files[0], 0.5)
    expected = model.generate("a dress", steps=2)
    assert np.abs(drawn.astype(int) - expected[0]).max() <= 1
    assert np.abs(drawn.astype(int) - plain[0]).max() > 5
    assert said["lora"] == str({files[0]: 0.5, files[1]: 0.0})
    with pytest.raises(InputError, match="3 weights for 2 LoRAs: give --lora-weight one for all"):
        main([*settings, "--lora", *files, "--lora-weight", "1", "2", "3"])
    with pytest.raises(InputError, match="--lora-weight is for --lora"):
        main([*settings, "--lora-weight", "1"])
    with pytest.raises(InputError, match="is loaded already: give another name"):
        main([*settings, "--lora", files[0], files[0]])
    with pytest.raises(InputError, match="nothing.safetensors"):
        main([*settings, "--lora", "nothing.safetensors"])


def test_several_pictures_are_files_named_by_prompt_and_seed_and_a_grid(folder, tmp_path, capsys):
    flags = ["--num-images", "3", "--steps", "1", "--seed", "8", "--sampler", "ddpm"]
    main(["a dress", "A BAG!", "--model", str(folder), "--output", str(tmp_path), *flags])
    names = [f"{name}-{seed}.png" for name in ("a-dress", "a-bag") for seed in (8, 9, 10)]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in [*names, "grid.png"]]
    assert {file.name for file in tmp_path.iterdir()} == {*names, "grid.png"}
    images = np.stack([pixels(tmp_path / name) for name in names])
    np.testing.assert_array_equal(pixels(tmp_path / "grid.png"), sheet(images, columns=3))
    assert texts(tmp_path / "a-bag-10.png")["prompt"] == "A BAG!"
    assert texts(tmp_path / "a-bag-10.png")["seed"] == "10"
    assert texts(tmp_path / "grid.png")["prompt"] == "['a dress', 'A BAG!']"
    assert texts(tmp_path / "grid.png")["sampler"] == "ddpm"


def test_a_clip_guides_from_the_command_line(folder, tiny_model, tmp_path):
    flags = ["a red dress", "--model", str(folder), "--steps", "2", "--guidance-scale", "1"]
    main([*flags, "--clip-guidance", "clip-mini", "--clip-guidance-scale", "2", "--output", str(tmp_path)])
    said = texts(tmp_path / "a-red-dress-0.png")
    assert (said["clip_guidance"], said["clip_guidance_scale"]) == ("clip-mini", "2.0")
    settings = {"steps": 2, "guidance_scale": 1.0, "progress": False}
    expected = tiny_model.generate("a red dress", clip_guidance=CLIPGuidance("clip-mini", 2.0), **settings)[0]
    assert np.abs(pixels(tmp_path / "a-red-dress-0.png").astype(int) - expected).max() <= 1


def test_a_picture_is_drawn_on_within_its_mask_and_its_way_shown(folder, tmp_path, tiny_model, capsys):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[:8] = True
    save_png(tmp_path / "image.png", image)
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    files = ["--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png")]
    flags = ["--steps", "5", "--strength", "0.6", "--strip", "--output", str(tmp_path / "out")]
    main(["a bag", "--model", str(folder), *files, *flags])
    expected = tiny_model.generate("a bag", steps=5, image=image, mask=mask, strength=0.6)
    drawn = pixels(tmp_path / "out" / "a-bag-0.png")
    assert np.abs(drawn.astype(int) - expected[0]).max() <= 1
    np.testing.assert_array_equal(drawn[8:], image[8:])
    assert texts(tmp_path / "out" / "a-bag-0.png")["strength"] == "0.6"
    strip = pixels(tmp_path / "out" / "strip.png")
    assert strip.shape == sheet(np.zeros((3, 16, 16, 3), np.uint8), columns=3).shape  # 0.6 of 5 steps
    assert str(tmp_path / "out" / "strip.png") in capsys.readouterr().out


def test_the_strip_is_that_of_the_first_prompt_however_long(folder, tmp_path):
    long = "a red dress, a blue bag, a coat, a shirt"  # in parts, unlike the other
    flags = ["--model", str(folder), "--steps", "3", "--strip", "--output", str(tmp_path)]
    main([long, "a bag", *flags])
    [first] = tmp_path.glob("a-red-dress*.png")
    last = pixels(tmp_path / "strip.png")[2:-2, -2 - 32 : -2][::2, ::2]
    assert np.abs(last.astype(int) - pixels(first)).mean() < 4  # but for the noise that is left
    assert np.abs(last.astype(int) - pixels(tmp_path / "a-bag-0.png")).mean() > 8


def test_a_mask_of_strokes_on_nothing_is_white_where_they_are(folder, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    strokes = np.zeros((16, 16, 4), np.uint8)
    strokes[:8] = 255
    save_png(tmp_path / "image.png", image)
    Image.fromarray(strokes).save(tmp_path / "mask.png")
    files = ["--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png")]
    main(["a bag", "--model", str(folder), "--steps", "3", *files, "--output", str(tmp_path / "out")])
    drawn = pixels(tmp_path / "out" / "a-bag-0.png")
    np.testing.assert_array_equal(drawn[8:], image[8:])
    assert (drawn[:8] != image[:8]).any()


def test_frames_go_from_prompt_to_prompt_and_from_seed_to_seed(folder, tiny_model, tmp_path, capsys):
    flags = ["--frames", "3", "--steps", "2", "--seed", "4", "7", "--sampler", "ddpm"]
    main(["a dress", "a bag", "--model", str(folder), "--output", str(tmp_path), *flags])
    names = ["frame-0.png", "frame-1.png", "frame-2.png", "grid.png"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in names]
    expected = tiny_model.interpolate(["a dress", "a bag"], 3, [4, 7], steps=2, sampler="ddpm")
    for name, frame in zip(names, expected, strict=False):
        assert np.abs(pixels(tmp_path / name).astype(int) - frame).max() <= 1
    said = texts(tmp_path / "frame-1.png")
    assert (said["prompt"], said["seed"], said["frame"]) == ("['a dress', 'a bag']", "[4, 7]", "1 of 3")


def test_words_negative_prompts_and_noise_from_the_command_line(folder, tiny_model, tmp_path):
    word = tmp_path / "word.safetensors"
    vector = np.random.default_rng(0).standard_normal(16, "float32")
    save_file({"<mine>": vector}, word)
    flags = ["--model", str(folder), "--steps", "2", "--negative-prompt", "blue", "red", "--batch-size", "1"]
    main(
        [
            "a <mine>",
            "a bag",
            *flags,
            "--textual-inversion",
            str(word),
            "--initial-noise",
            "--output",
            str(tmp_path),
        ]
    )
    model = sd_tf.load(folder)
    model.load_textual_inversion(word)
    expected = model.generate(
        ["a <mine>", "a bag"],
        steps=2,
        negative_prompt=["blue", "red"],
        initial_noise=InitialNoise(),
        engine="tensorflow",
        progress=False,
    )
    for name, image in zip(("a-mine-0.png", "a-bag-0.png"), expected, strict=True):
        assert np.abs(pixels(tmp_path / name).astype(int) - image).max() <= 1
    said = texts(tmp_path / "a-mine-0.png")
    assert said["initial_noise"] == "True" and said["negative_prompt"] == "['blue', 'red']"
    assert said["textual_inversion"] == str([str(word)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mask", "mask.png"], "--mask is for a picture: give --image as well"),
        (["--strength", "0.5"], "--strength is for a picture: give --image as well"),
        (["--image", "nothing.png"], "--image .*nothing.png cannot be read as a picture: it is missing"),
        (["--image", "text.png"], "--image .*text.png cannot be read as a picture"),
        (["--image", "image.png", "--strength", "2"], "strength is 2.0"),
        (["--image", "image.png", "--mask", "text.png"], "--mask .*text.png cannot be read as a picture"),
        (["--image", "image.png", "--mask", "image.png"], "mask covers nothing: give True where something"),
        (["--image", "wide.png"], "image is 18 x 16: give sides that are multiples of"),
    ],
    ids=str,
)
def test_a_picture_that_cannot_be_drawn_on_is_named(flags, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_png("image.png", np.zeros((16, 16, 3), np.uint8))
    save_png("wide.png", np.full((16, 18, 3), 255, np.uint8))
    Path("text.png").write_text("no picture")
    with pytest.raises(InputError, match=message):
        main(["a bag", "--model", str(folder), "--output", "out", *flags])
    assert not Path("out").exists()


def test_pictures_that_are_there_stay_and_the_grid_is_of_the_last_drawing(folder, tmp_path, capsys):
    flags = ["--model", str(folder), "--steps", "1", "--engine", "tensorflow", "--output", str(tmp_path)]
    main(["a bag", "--num-images", "2", *flags])
    before = {file: file.read_bytes() for file in tmp_path.glob("a-bag*.png")}
    capsys.readouterr()
    main(["a bag", "--guidance-scale", "1", *flags])
    new, grid = tmp_path / "a-bag-0-1.png", tmp_path / "grid.png"
    assert capsys.readouterr().out.splitlines() == [str(new), str(grid)]
    assert all(file.read_bytes() == content for file, content in before.items()) and len(before) == 2
    np.testing.assert_array_equal(pixels(grid), sheet(pixels(new)[np.newaxis], columns=1))
    main(["a bag", "a bag", *flags, "--seed", "0", "0"])
    assert {file.name for file in tmp_path.glob("a-bag*")} == {
        *("a-bag-0.png", "a-bag-1.png", "a-bag-0-1.png", "a-bag-0-2.png", "a-bag-0-3.png")
    }
    for _ in range(2):
        main(["a bag", "a dress", "--frames", "2", *flags])
    assert {file.name for file in tmp_path.glob("frame*")} == {
        *("frame-0.png", "frame-1.png", "frame-0-1.png", "frame-1-1.png")
    }


def test_a_random_seed_is_told_by_name_and_content(folder, tmp_path):
    flags = ["--model", str(folder), "--steps", "1", "--output", str(tmp_path)]
    main(["a bag", "--seed", "random", *flags])
    main(["a bag", "--seed", "random", *flags])
    files = list(tmp_path.glob("a-bag-*.png"))
    assert len(files) == 2 and all(file.name == f"a-bag-{texts(file)['seed']}.png" for file in files)
    with pytest.raises(InputError, match="--seed has numbers beside random: give one of the two"):
        main(["a bag", "--seed", "random", "3", *flags])
    with pytest.raises(InputError, match="argument --seed: soon is no seed: give a whole number, or random"):
        main(["a bag", "--seed", "soon", *flags])


def test_sizes_and_prompts_of_web_interfaces_from_the_command_line(folder, tiny_model, tmp_path):
    flags = ["--model", str(folder), "--steps", "2", "--engine", "tensorflow", "--output", str(tmp_path)]
    main(["a [red] dress", "--height", "24", "--width", "12", "--prompt-syntax", "a1111", *flags])
    expected = tiny_model.generate("a [red] dress", height=24, width=12, steps=2, prompt_syntax="a1111")
    drawn = pixels(tmp_path / "a-red-dress-0.png")
    assert drawn.shape == (24, 12, 3) and np.abs(drawn.astype(int) - expected[0]).max() <= 1
    said = texts(tmp_path / "a-red-dress-0.png")["parameters"]
    assert said.splitlines()[0] == "a [red] dress" and "Size: 12x24" in said
    with pytest.raises(InputError, match="--height is 25: give 24 or 28, a multiple of 4"):
        main(["a dress", "--height", "25", *flags])


def test_sixteen_pictures_of_one_prompt_make_a_square(folder, tmp_path):
    flags = ["--num-images", "16", "--steps", "1"]
    main(["a bag", "--model", str(folder), "--output", str(tmp_path), *flags])
    images = np.stack([pixels(tmp_path / f"a-bag-{seed}.png") for seed in range(16)])
    np.testing.assert_array_equal(pixels(tmp_path / "grid.png"), sheet(images, columns=4))


def test_prompts_of_one_name_do_not_overwrite_each_other(folder, tmp_path):
    prompts = ["a dress", "a dress?", "a-dress"]
    main([*prompts, "--model", str(folder), "--output", str(tmp_path), "--steps", "1"])
    files = [file for file in tmp_path.iterdir() if file.name != "grid.png"]
    assert sorted(texts(file)["prompt"] for file in files) == sorted(prompts)
    assert texts(tmp_path / "a-dress-0.png")["prompt"] == "a dress"


def test_a_picture_made_in_bfloat16_is_near_the_exact_one(folder, tmp_path):
    for precision in ("float32", "mixed_bfloat16"):
        flags = ["--steps", "2", "--precision", precision, "--output", str(tmp_path / precision)]
        main(["a bag", "--model", str(folder), *flags])
    exact, mixed = (
        pixels(tmp_path / precision / "a-bag-0.png").astype(int)
        for precision in ("float32", "mixed_bfloat16")
    )
    assert 0 < np.abs(exact - mixed).mean() < 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "no-such-model"], "unknown model 'no-such-model'"),
        (["--precision", "float23"], "unknown --precision 'float23': did you mean 'float32'"),
        (["--sampler", "dimm"], "unknown sampler 'dimm': did you mean 'ddim'"),
        (["--steps", "0"], "steps is 0"),
        (["--steps", "-3"], "steps is -3"),
        (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["--num-images", "0"], "num_images is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--eta", "2"], "eta is 2.0"),
        (["--clip-guidance-scale", "2"], "--clip-guidance-scale is for --clip-guidance: name a CLIP"),
        (["--clip-guidance", "clip-mono"], "unknown CLIP 'clip-mono': did you mean 'clip-mini'"),
        (
            ["--seed", "1", "2"],
            r"seed has 2 numbers: give one, one for each prompt \(1\), or one for each picture \(1\)",
        ),
        (["--frames", "4"], "1 prompts and 1 seeds: give two or more of one of them"),
        (["--frames", "1", "--seed", "1", "2"], "frames is 1"),
        (["--frames", "4", "--seed", "1", "2", "--strip"], "--frames does not go with --strip"),
        (["--frames", "4", "--seed", "1", "2", "--num-images", "2"], "--num-images is one for all --frames"),
        (["--negative-prompt", "a", "b"], "2 negative prompts for 1 prompts"),
        (["--textual-inversion", "no.safetensors"], "no.safetensors"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_and_nothing_is_written(flags, message, folder, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        main(["a dress", "--model", str(folder), "--output", str(tmp_path / "out"), *flags])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_empty_prompt_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="the prompt is empty"):
        main([" ", "--model", str(folder), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def unwritable(folder):
    """Name -> an --output that cannot be."""
    (folder / "file").write_text("mine")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    names = ("file", "file/below", "loop", "loop/below", "dangling", "dangling/below", "pipe", "x" * 300)
    return [folder / name for name in (*names, "new/" + "ü" * 200, "y" * 5000, "null\0")]


def test_an_output_that_cannot_be_is_refused_before_the_model_is_read(tmp_path):
    before = None
    for output in unwritable(tmp_path):
        before = before or sorted(os.listdir(tmp_path))
        with pytest.raises(InputError, match="--output .* cannot be written") as error:
            main(["a dress", "--model", "no-such-model", "--output", str(output)])
        assert len(str(error.value)) < 700
    assert (tmp_path / "file").read_text() == "mine" and sorted(os.listdir(tmp_path)) == before


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/usr/bin/setpriv").exists(), reason="root reads all")
def test_a_folder_below_one_that_may_not_be_read_is_refused_in_one_line(tmp_path):
    program = (
        "from pathlib import Path; from sd_tf import commandline\n"
        "commandline.run(lambda: commandline.check_writable(Path('closed/below/out')))"
    )
    (tmp_path / "closed").mkdir(mode=0)
    tmp_path.chmod(0o755)
    other = ["setpriv", "--reuid", "65534", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*other, sys.executable, "-B", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    (tmp_path / "closed").chmod(0o700)
    if "No module named" in done.stderr or "can't open" in done.stderr or not done.stderr:
        pytest.skip("another user cannot read this package")
    assert done.returncode == 2
    assert done.stderr == "error: --output closed/below/out cannot be written: Permission denied\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has names in UTF-8")
def test_a_locale_of_bytes_takes_prompts_and_files_of_any_letters(tmp_path):
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    path = {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    words = ["-m", "sd_tf.generate", "größe 一件", "--steps", "1", "--output", "ü"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=os.environ | locale | path, timeout=300)
    assert done.returncode == 0
    assert [path.name for path in (tmp_path / "ü").iterdir()] == ["größe-一件-0.png"]


def test_a_folder_in_the_place_of_a_picture_is_named_before_anything_is_drawn(tmp_path):
    for name in ("strip.png", "grid.png"):
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match=f"{name} is a folder, but a file is to be written there"):
            main(["a dress", "--num-images", "2", "--model", "no-such", "--output", str(tmp_path)])
        (tmp_path / name).rmdir()


def test_a_full_disk_leaves_no_half_picture(folder, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    flags = ["--model", str(folder), "--steps", "1", "--engine", "tensorflow"]
    main(["a dress", *flags, "--output", str(tmp_path)])
    before = (tmp_path / "a-dress-0.png").read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # a file that grows more is cut off
        with pytest.raises(InputError, match="cannot write .*a-dress-0.png: File too large"):
            main(["a dress", *flags, "--guidance-scale", "1", "--output", str(tmp_path)])
        with pytest.raises(InputError, match="cannot write .*a-bag-0.png"):
            main(["a bag", *flags, "--output", str(tmp_path)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["a-dress-0.png"]
    assert (tmp_path / "a-dress-0.png").read_bytes() == before


def test_words_that_are_no_utf8_are_one_line(folder, tmp_path):
    root = str(Path(sd_tf.__file__).parent.parent)
    odd = os.fsencode(tmp_path) + b"/caf\xe9"
    settings = ["--steps", "1", "--model", str(folder)]
    run = [sys.executable, "-m", "sd_tf.generate"]
    environment = os.environ | {"PYTHONPATH": root, "PYTHONUTF8": "1"}
    for words, said in (
        ([b"a caf\xe9", *settings], "the prompt 'a caf\\udce9' has characters that are not valid Unicode"),
        (["a bag", "--negative-prompt", b"\xff", *settings], "the negative prompt '\\udcff' has"),
    ):
        done = subprocess.run([*run, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {said}"), done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = subprocess.run(
        [*run, "a bag", *settings, "--output", odd], cwd=tmp_path, env=environment, capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, odd + b"/a-bag-0.png\n"), done.stderr


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a\nb"), ValueError("x; No space left on device [y]")],
)
def test_a_full_disk_is_one_line_whoever_says_it(capsys, monkeypatch, error):
    def full():
        raise error

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as end:
        commandline.run(full)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: there is no space left on the disk")
    assert len(said.splitlines()) == 1


def test_a_warning_shows_no_commands_of_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    commandline.run(lambda: warnings.showwarning("a \x1b[31mfile\nerror: all is lost", UserWarning, "", 1))
    assert capsys.readouterr().err == "warning: a \\x1b[31mfile\\nerror: all is lost\n"


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["a dress", "--sampler", "dimm"], 2, "error: unknown sampler 'dimm'"),
        (["a dress", "--steps", "many"], 2, "error: argument --steps: invalid int value"),
    ],
    ids=["found late", "found at once"],
)
def test_the_command_exits_2_with_one_line_and_writes_nothing(arguments, status, line, folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sd_tf.generate", *arguments, "--model", str(folder), "--output", "out"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith("TF_")}
        | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(line)
    assert not list(tmp_path.iterdir())


def test_a_warning_is_one_line_and_the_pictures_are_drawn(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sd_tf.generate", "赤い", "--steps", "1", "--model", str(folder)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "warning: prompt '赤い' has no Latin letter: the text encoder was trained on English captions"
    ]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["赤い-0.png"]


@pytest.mark.parametrize("flag", ["--image", "--mask"])
def test_a_picture_to_start_from_is_a_regular_file(tmp_path, flag):
    os.mkfifo(tmp_path / "pipe")
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    flags = ["--image", str(tmp_path / "image.png"), flag, str(tmp_path / "pipe")]
    with pytest.raises(InputError, match=f"{flag} .*pipe cannot be read as a picture: it is a named pipe"):
        main(["a dress", *flags, "--output", str(tmp_path / "out")])
