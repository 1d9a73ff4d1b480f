"""Cascades are trained, resumed, trained stage by stage and further, and read again as they were."""

import signal

import numpy as np
import PIL.Image
import pytest

import sd_tf
from sd_tf import generate, train
from sd_tf.cascade import presets
from sd_tf.training import observers
from tests.cascade.conftest import BASE, ENLARGE

CONFIGS = (presets.replace(BASE, sample_size=16), presets.replace(ENLARGE, sample_size=32))  # of garments
TINY = presets.Preset(
    stages=tuple(
        presets.replace(
            stage,
            unet=config,
            training=presets.replace(stage.training, batch_size=4, warmup_steps=1),
            recommended=presets.Settings(steps=2, sampler="ddim"),
        )
        for stage, config in zip(presets.SMALL.stages, CONFIGS, strict=True)
    ),
    text_encoder="clip-mini",
    max_minutes=0.1,
)
SETTINGS = {"steps": 4, "options": {"previews": 1}, "verbose": 0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 12 garments with captions, of which previews show one like a weight."""
    folder = tmp_path_factory.mktemp("pictures")
    examples = sd_tf.open_data("garments").at(32).examples(range(12), 0)
    for i, (image, caption) in enumerate(zip(examples.images, examples.captions, strict=True)):
        PIL.Image.fromarray(image).save(folder / f"{i}.png")
        # One as it must not be read as a prompt: with a weight, which would be refused.
        (folder / f"{i}.txt").write_text(f"(12:30) {caption}" if i == 0 else caption)
    return folder


@pytest.fixture(scope="module")
def data(pictures):
    return f"folder:{pictures}"


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", TINY)


def new(**options):
    return sd_tf.CascadedDiffusion.from_preset("tiny", "garments", **options)


def files_of(folder, *suffixes):
    """Relative name -> content of the weights in a run's folder."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*.safetensors")
        if "checkpoints" not in file.parts
    }


def test_a_cascade_trains_previews_saves_loads_and_draws(tmp_path, data):
    model = new()
    history = model.fit(data, folder=tmp_path / "run", **SETTINGS)
    assert list(dict.fromkeys(history.stage)) == ["base", "sr2"]
    assert {file.name.split("-")[0] for file in (tmp_path / "run" / "samples").iterdir()} == {"base", "sr2"}
    read = sd_tf.load(tmp_path / "run")
    assert isinstance(read, sd_tf.CascadedDiffusion)
    drawing = {"seed": 1, "engine": "tensorflow"}
    ours, theirs = (each.generate("a red dress", **drawing) for each in (model, read))
    assert ours.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(ours, theirs)
    model.save(tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(tmp_path / "run")


@pytest.mark.slow
def test_it_learns(data):
    model = new()
    history = model.fit(data, **SETTINGS | {"steps": 150})
    for name in ("base", "sr2"):
        losses = [
            loss for loss, stage in zip(history.history["loss"], history.stage, strict=True) if stage == name
        ]
        assert losses[-1] < 0.7 * losses[0]


def test_a_stopped_run_resumes_to_the_bit(tmp_path, monkeypatch, data):
    new().fit(data, folder=tmp_path / "whole", **SETTINGS)

    def interrupt(log, trainer, step, elapsed, means, plain=observers.Log.__call__):
        plain(log, trainer, step, elapsed, means)
        if step == 2 and trainer.stage.name == "sr2":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(observers.Log, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt, match="stopped in stage sr2: .* resume from step 2"):
            new().fit(data, folder=tmp_path / "run", **SETTINGS)
    new().fit(data, folder=tmp_path / "run", **SETTINGS)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_stages_are_trained_one_by_one_to_the_same_model(tmp_path, pictures):
    flags = ["cascade", "--preset", "tiny", "--dataset", "folder", "--data-dir", str(pictures)]
    flags += ["--max-steps", "4", "--previews", "0"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    train.main([*flags, "--output", str(whole)])
    train.main([*flags, "--output", str(run), "--stages", "sr2"])
    assert not (run / "model_index.json").exists() and not (run / "base").exists()
    for _ in range(2):  # the same command again finds it done
        train.main([*flags, "--output", str(run), "--stages", "base"])
    assert files_of(run) == files_of(whole)
    assert len(sd_tf.load(run).stages) == 2 and len(sd_tf.load(run / "base").stages) == 1
    with pytest.raises(sd_tf.InputError, match="unknown --stages 'sr3': .*Valid: base, sr2"):
        train.main([*flags, "--output", str(tmp_path / "other"), "--stages", "sr3"])


@pytest.mark.slow
def test_a_stage_that_is_finished_is_trained_further_in_another_folder(tmp_path, data):
    settings, model = SETTINGS | {"steps": 1, "options": {"previews": 0, "stages": ("base",)}}, new()
    for name in ("first", "second"):
        model.fit(data, folder=tmp_path / name, **settings)
    new().fit(data, folder=tmp_path / "new", **settings)
    first, second, again = (files_of(tmp_path / name) for name in ("first", "second", "new"))
    assert again == first
    assert {name for name in first if first[name] != second[name]} == {
        name for name in first if "/unet/" in name
    }


def test_the_first_stages_are_a_model_while_later_ones_are_missing(tmp_path, data):
    run, settings = (
        tmp_path / "run",
        SETTINGS | {"options": SETTINGS.get("options", {}) | {"stages": ("base",)}},
    )
    new().fit(data, folder=run, **settings)
    first = sd_tf.load(run)
    assert len(first.stages) == 1 and first.generate("a dress", steps=1).shape[1:3] == first.image_size


def test_a_run_that_was_ended_before_its_index_was_written_makes_up_for_it(tmp_path, data):
    new().fit(data, folder=tmp_path / "run", **SETTINGS)
    index = (tmp_path / "run" / "model_index.json").read_text()
    (tmp_path / "run" / "model_index.json").unlink()
    new().fit(data, folder=tmp_path / "run", **SETTINGS)
    assert (tmp_path / "run" / "model_index.json").read_text() == index


@pytest.mark.slow
def test_patches_are_learned_and_whole_pictures_drawn(tmp_path, data):
    model = new()
    model.fit(data, **SETTINGS | {"options": {"crop": 8, "previews": 0}})
    assert model.generate("a dress").shape == (1, 32, 32, 3)
    with pytest.raises(sd_tf.InputError, match="crop is 9: stage sr2 draws 32 pixels, .* a multiple of 2"):
        new().fit(data, **SETTINGS | {"options": {"crop": 9}})


@pytest.mark.slow
def test_a_trained_cascade_is_trained_further(tmp_path, data, pictures):
    model = new()
    model.fit(data, folder=tmp_path / "first", **SETTINGS)
    before = files_of(tmp_path / "first")
    flags = ["cascade", "--init-from", str(tmp_path / "first"), "--max-steps", "2"]
    flags += ["--dataset", "folder", "--data-dir", str(pictures)]
    train.main([*flags, "--previews", "0", "--output", str(tmp_path / "second")])
    after = files_of(tmp_path / "second")
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() and changed == {name for name in before if "/unet/" in name}
    with pytest.raises(sd_tf.InputError, match="--stages is for a new model or a LoRA: leave it out"):
        train.main([*flags, "--stages", "base", "--output", str(tmp_path / "third")])
    with pytest.raises(sd_tf.InputError, match="--preset is only for a new model"):
        train.main([*flags, "--preset", "tiny", "--output", str(tmp_path / "third")])


def test_a_dry_run_counts_both_stages_and_writes_nothing(tmp_path, capsys, pictures):
    flags = ["cascade", "--preset", "tiny", "--dataset", "folder", "--data-dir", str(pictures), "--dry-run"]
    train.main([*flags, "--output", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "stage base" in said and "stage sr2" in said and "trainable parameters" in said
    assert not (tmp_path / "run").exists()


A1111 = ["--prompt-syntax", "a1111"]


def test_the_command_line_draws_and_enlarges(tmp_path, capsys):
    model = new()
    model.save(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    generate.main(
        ["a red dress", *flags, "--steps", "2", "--sr-steps", "2", "--thresholding", "static", "--strip"]
    )
    generate.main(["a dress", "--strip", "--steps", "2", "--output", str(tmp_path / "latent")])  # as before
    [drawn] = [file for file in (tmp_path / "out").glob("*.png") if "dress" in file.name]
    assert (tmp_path / "out" / "strip.png").exists()
    generate.main(["--upscale", str(drawn), *flags, "--sr-steps", "2", "--augment-level", "10"])
    [upscaled] = [file for file in (tmp_path / "out").iterdir() if file.name.startswith("upscaled")]
    with PIL.Image.open(upscaled) as picture, PIL.Image.open(drawn) as before:
        assert picture.size == (64, 64) and picture.text["augment_level"] == "10"
        assert "sampler" not in picture.text and before.text["thresholding"] == "static"
    for flag in (["--steps", "2"], ["--sampler", "ddim"], ["--seed", "1", "2"], ["--strip"], A1111):
        with pytest.raises(sd_tf.InputError, match="--upscale"):
            generate.main(["--upscale", str(drawn), *flags, *flag])
    with pytest.raises(sd_tf.InputError, match="--clip-skip is not for this kind of model"):
        generate.main(["a red dress", *flags, "--clip-skip", "1"])
    with pytest.raises(sd_tf.InputError, match="--thresholding is not for this kind .*, LatentDiffusion"):
        generate.main(["a red dress", "--thresholding", "static", "--output", str(tmp_path / "out")])
    with pytest.raises(sd_tf.InputError, match="--upscale needs a cascade with a super-resolution stage"):
        generate.main(["--upscale", str(drawn), "--output", str(tmp_path / "out")])
    with pytest.raises(sd_tf.InputError, match="the prompt is missing"):
        generate.main(["--output", str(tmp_path / "out")])
