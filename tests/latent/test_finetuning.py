"""`--init-from`: a model learns more, all of it, its cross-attention, or low-rank changes kept apart."""

import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from safetensors.numpy import load_file

import sd_tf
from sd_tf.checkpoints.names import keyed_variables
from sd_tf.checkpoints.word_files import FILE as WORD_FILE
from sd_tf.diffusion.conditions import Condition, drop_captions
from sd_tf.errors import InputError
from sd_tf.generate import main as draw
from sd_tf.images import save_png
from sd_tf.latent import presets, recipe
from sd_tf.latent.lora import read_lora
from sd_tf.lora.files import FILE
from sd_tf.text.new_words import embedding_of, token_embeddings
from sd_tf.training.dry_run import describe
from sd_tf.training.run import Run
from tests.conftest import shake_variables
from tests.training.tiny import TINY, config, contents, interrupt, run_of, train, with_tiny_preset

KINDS = ("unet", "cross_attention", "lora")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with with_tiny_preset(), pytest.MonkeyPatch.context() as monkeypatch:
        quick = dataclasses.replace(TINY.diffusion_stage, optimizer="adamw", learning_rate=1e-2)
        preset = dataclasses.replace(
            presets.FINE_TUNING, diffusion_stage=quick, learning_rates={}, cached_epochs=1
        )
        monkeypatch.setitem(presets.PRESETS, "fine-tuning", preset)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of sizes unlike those of any preset, with no layer that is still at zero."""
    folder = tmp_path_factory.mktemp("base")
    train(config(folder / "run"))
    model = sd_tf.load(folder / "run")
    shake_variables(model.unet)
    model.save(folder / "model")
    return folder / "model"


def of(base, folder, **changes):
    return config(folder, preset=None, init_from=str(base), **changes)


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """Kind -> the folder of a finished run."""
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp("tuned") / kind
        train(of(base, folders[kind], finetune=kind))
    return folders


def weights(folder, part="unet"):
    return {
        key: np.asarray(variable.value)
        for key, variable in keyed_variables(getattr(sd_tf.load(folder), part)).items()
    }


@pytest.mark.parametrize("kind", KINDS[:2])
def test_what_is_to_learn_changes_and_nothing_else(base, tuned, kind):
    before, after = weights(base), weights(tuned[kind])
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    wanted = {key for key in before if kind == "unet" or ".attn2." in key}
    # Keys of a single token or at zero may have no gradient; most have.
    assert changed <= wanted and len(changed) > 0.8 * len(wanted)
    for part in ("autoencoder", "text_encoder"):
        frozen = weights(base, part), weights(tuned[kind], part)
        assert all(np.array_equal(frozen[0][key], frozen[1][key]) for key in frozen[0])


def test_a_lora_is_a_small_file_of_the_attention_alone(base, tuned):
    names = {path.name for path in tuned["lora"].iterdir()}
    assert FILE in names and not names & {"unet", "vae", "text_encoder", "model_index.json"}
    changes = read_lora(tuned["lora"], sd_tf.load(base).adaptations.modules)
    assert {change.rank for change in changes.values()} == {8}
    assert {module.split(".attn")[1][2:] for module in changes} == {"to_q", "to_k", "to_v", "to_out.0"}
    assert any(np.abs(change.product()).max() > 1e-4 for change in changes.values())


@pytest.mark.parametrize(("name", "kept"), [("x" * 250, 200), ("é" * 125, 100), ("run", 3)])
def test_in_kohyas_layout_a_run_of_a_long_name_has_a_file_that_can_be_written(base, tmp_path, name, kept):
    run = run_of(of(base, tmp_path / name, finetune="lora", lora_layout="kohya"))
    (run.folder / run.result).touch()
    assert run.result == f"{name[:kept]}.safetensors"


def test_in_kohyas_layout_a_lora_is_named_as_its_run_and_is_the_same(base, tuned, tmp_path):
    """A finished run that is started again with the other layout writes it as well."""
    run = tmp_path / "stripes"
    shutil.copytree(tuned["lora"], run)
    train(of(base, run, finetune="lora", lora_layout="kohya"))
    (run / FILE).unlink()
    tensors, model = load_file(run / "stripes.safetensors"), sd_tf.load(base)
    parts = {key.partition(".")[2] for key in tensors}
    assert parts == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert all(key.startswith("lora_unet_") for key in tensors)
    ours, theirs = (read_lora(folder, model.adaptations.modules) for folder in (run, tuned["lora"]))
    assert ours.keys() == theirs.keys()
    for module, change in ours.items():
        np.testing.assert_array_equal(change.product(), theirs[module].product())
    model.load_lora(run)
    assert model.adaptations.weights == {"stripes": 1.0}
    with pytest.raises(InputError, match="holds a LoRA, not a model"):
        sd_tf.load(run)
    settings = ["a dress", "--model", str(base), "--steps", "1", "--output", str(tmp_path / "out")]
    draw([*settings, "--lora", str(run)])
    with Image.open(tmp_path / "out" / "a-dress-0.png") as drawn:
        expected = model.generate("a dress", steps=1, engine="tensorflow", progress=False)[0]
        assert np.abs(np.asarray(drawn).astype(int) - expected).max() <= 1


def test_a_loaded_lora_is_the_network_that_was_trained(base, tmp_path, monkeypatch):
    """What the run drew on its way with Keras' own low-rank layers, and what the file says, are the same."""
    from sd_tf.latent import recipe as recipes

    seen = {}
    learned = recipes.learned_changes

    def spy(unet):
        latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
        context = np.random.default_rng(1).standard_normal((2, 24, 8)).astype("float32")
        seen["inputs"] = latents, np.array([10, 700], np.int32), context
        seen["output"] = np.asarray(unet(*seen["inputs"]))
        return learned(unet)

    monkeypatch.setattr(recipes, "learned_changes", spy)
    flags = {"finetune": "lora", "lora_rank": 3, "lora_alpha": 6.0, "lora_targets": "to_q,proj_in,conv1"}
    train(of(base, tmp_path / "run", **flags))
    model = sd_tf.load(base)
    before = np.asarray(model.unet(*seen["inputs"]))
    model.load_lora(tmp_path / "run", name="mine")
    np.testing.assert_allclose(np.asarray(model.unet(*seen["inputs"])), seen["output"], atol=1e-5)
    assert np.abs(seen["output"] - before).max() > 1e-3
    model.adaptations.weigh({"mine": 0})
    np.testing.assert_array_equal(np.asarray(model.unet(*seen["inputs"])), before)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Pictures of one thing, without captions."""
    folder, generator = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for number in range(6):
        save_png(folder / f"{number}.png", generator.integers(0, 256, (32, 32, 3), np.uint8))
    return folder


def of_one_thing(base, own, folder, **changes):
    flags = {"dataset": "folder", "data_dir": str(own), "caption": "a <mine> dress"}
    return of(base, folder, **flags | changes)


WORD = {"finetune": "textual_inversion", "new_word": "<mine>", "like_word": "dress"}


def test_textual_inversion_learns_one_embedding_and_nothing_else(base, own, tmp_path):
    train(of_one_thing(base, own, tmp_path / "run", **WORD))
    before, after = sd_tf.load(base), sd_tf.load(tmp_path / "run")
    for part in ("unet", "autoencoder"):
        ours, theirs = weights(tmp_path / "run", part), weights(base, part)
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    row = after.tokenizer.token_id("<mine>")
    table, known = (np.asarray(token_embeddings(model.text_encoder).value) for model in (after, before))
    np.testing.assert_array_equal(table[: len(known)], known)
    begun = embedding_of(before.text_encoder, before.tokenizer, "dress")
    assert np.abs(table[row] - begun).max() > 1e-4
    before.load_textual_inversion(tmp_path / "run")
    settings = {"steps": 2, "engine": "tensorflow", "progress": False}
    ours, theirs = (model.generate("a <mine> dress", **settings) for model in (after, before))
    np.testing.assert_array_equal(ours, theirs)


def test_the_loss_of_a_word_reaches_its_embedding_alone(base, own, tmp_path):
    """The gradient is that of the tower's own table, at the word's row."""
    run = run_of(of_one_thing(base, own, tmp_path / "run", **WORD))
    run.dataset.decode(progress=False)
    (planned,), model = run.stages, run.recipe.model
    stage = planned.make(run, run.budget(planned))
    batch = next(iter(stage.batches(0)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(stage.loss(batch)["loss"])
    (ours,) = tape.gradient(loss, stage.network.trainable_variables)
    table = token_embeddings(model.text_encoder)
    with tf.GradientTape() as tape:
        context = model.text_encoder(batch["token_ids"]).last_hidden_state
        empty = Condition(stage.empty_context)
        context = drop_captions(Condition(context), empty, batch["dropped"]).context
        losses = model.loss(batch["latents"], context, batch["timesteps"], batch["noise"])
        loss = tf.reduce_mean(losses)
    theirs = tf.convert_to_tensor(tape.gradient(loss, table.value))
    np.testing.assert_allclose(ours[0], theirs[stage.row], rtol=1e-3, atol=1e-7)
    assert np.abs(ours).max() > 1e-6


def test_prior_pictures_are_drawn_once_by_the_model_as_it_was_and_learned_beside_the_own(base, own, tmp_path):
    flags = {"prior_prompt": "a dress", "prior_pictures": 4}
    train(of_one_thing(base, own, tmp_path / "run", **flags))
    files = sorted((tmp_path / "run" / "prior").iterdir())
    expected = sd_tf.load(base).generate("a dress", 4, seed=0, engine="tensorflow", progress=False)
    for file, image in zip(files, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
    (cache,) = [path for path in (tmp_path / "run" / "cache").iterdir() if (path / "contexts.npy").is_file()]
    assert len(np.load(cache / "contexts.npy")) == 3  # of both captions, and of none


@pytest.mark.parametrize(
    ("flags", "file"),
    [
        ({"finetune": "lora", "lora_rank": 3}, FILE),
        (WORD, WORD_FILE),
        ({"finetune": "lora", "prior_prompt": "a dress", "prior_pictures": 4}, FILE),
    ],
    ids=["lora", "word", "prior"],
)
def test_an_interrupted_run_ends_bit_for_bit_where_an_undisturbed_one_does(
    base, own, tmp_path, monkeypatch, flags, file
):
    train(of_one_thing(base, own, tmp_path / "whole", **flags))
    interrupt(run_of(of_one_thing(base, own, tmp_path / "run", **flags)), monkeypatch, "diffusion", 2)
    train(of_one_thing(base, own, tmp_path / "run", **flags))
    assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_checkpoints_hold_what_learns_and_the_rest_is_the_model_that_the_run_began_from(
    base, own, tmp_path, monkeypatch
):
    sizes = {}
    for kind in ("unet", "lora"):
        shutil.copytree(base, tmp_path / "model", dirs_exist_ok=True)
        run = run_of(of_one_thing(tmp_path / "model", own, tmp_path / kind, finetune=kind))
        interrupt(run, monkeypatch, "diffusion", 2)
        files = (tmp_path / kind / "checkpoints" / "diffusion").rglob("*.data-*")
        sizes[kind] = max(file.stat().st_size for file in files)
    assert sizes["lora"] < 0.2 * sizes["unet"]
    other = sd_tf.load(base)
    shake_variables(other.unet)
    other.save(tmp_path / "model")
    with pytest.raises(InputError, match="began from other weights than .*model has now"):
        run_of(of_one_thing(tmp_path / "model", own, tmp_path / "lora", finetune="lora"))


def test_a_base_model_is_known_by_its_own_weights_and_not_by_what_a_run_left_beside_them(base, own, tmp_path):
    model, extras = tmp_path / "model", ("clip", "snapshots/step-0000001")
    shutil.copytree(base, model)
    for extra in extras:
        shutil.copytree(base / "unet", model / extra)
    run_of(of_one_thing(model, own, tmp_path / "run", finetune="lora"))
    before = (tmp_path / "run" / "run.json").read_bytes()
    for extra in extras:
        shutil.rmtree(model / extra)
    run_of(of_one_thing(model, own, tmp_path / "run", finetune="lora"))
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_previews_of_a_lora_beside_a_prior_show_the_lora(base, own, tmp_path, monkeypatch):
    """What draws the prior compiles the network as it was before it had a LoRA."""
    from sd_tf.latent.stages import DiffusionStage

    seen, preview = {}, DiffusionStage.preview

    def spy(stage):
        seen["images"], seen["prompts"] = preview(stage)[0], stage.preview_prompts
        return preview(stage)

    monkeypatch.setattr(DiffusionStage, "preview", spy)
    flags = {"finetune": "lora", "learning_rate": 0.03, "prior_prompt": "a dress", "prior_pictures": 4}
    train(of_one_thing(base, own, tmp_path / "run", **flags))
    model = sd_tf.load(base)
    settings = {"num_images": 2, "steps": 20, "engine": "tensorflow", "progress": False}
    plain = model.generate(seen["prompts"], **settings).astype(int)
    model.load_lora(tmp_path / "run")
    adapted = model.generate(seen["prompts"], **settings).astype(int)
    assert np.abs(seen["images"] - adapted).max() <= 1 < np.abs(adapted - plain).max()


def test_a_model_that_has_drawn_and_has_the_lora_of_a_deleted_run_learns_from_what_it_was(
    base, own, tmp_path, monkeypatch
):
    """Previews show the LoRA that is trained, though the network was compiled without it."""
    from sd_tf.latent.stages import DiffusionStage

    seen, preview = {}, DiffusionStage.preview

    def spy(stage):
        seen["images"], seen["prompts"] = preview(stage)[0], stage.preview_prompts
        return seen["images"], len(seen["prompts"])

    monkeypatch.setattr(DiffusionStage, "preview", spy)
    lora = {"tune": sd_tf.LoRA(), "folder": tmp_path / "mine", "steps": 3, "learning_rate": 0.03}
    lora |= {"options": {"previews": 1}, "verbose": 0}
    model, data, files = sd_tf.load(base), sd_tf.open_data(f"folder:{own}", caption="a <mine> dress"), []
    drawing = {"num_images": 2, "steps": 20, "engine": "tensorflow", "progress": False}
    for _ in range(2):
        model.generate(seen.get("prompts", "a dress"), **drawing)
        model.fit(data, **lora)
        files.append(load_file(tmp_path / "mine" / FILE))
        shutil.rmtree(tmp_path / "mine")
    adapted = model.generate(seen["prompts"], **drawing).astype(int)
    assert np.abs(seen["images"] - adapted).max() <= 1
    with model.without_adaptations():
        plain = model.generate(seen["prompts"], **drawing)
    assert np.abs(adapted - plain).max() > 1
    assert all(np.array_equal(files[0][key], files[1][key]) for key in files[0])


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({}, 1e-5),
        ({"finetune": "unet", "prior_prompt": "a dress"}, 5e-6),
        ({"finetune": "cross_attention"}, 1e-5),
        ({"finetune": "lora"}, 1e-4),
        ({"finetune": "lora", "prior_prompt": "a dress"}, 1e-4),
        (WORD, 5e-4),
    ],
    ids=str,
)
def test_each_kind_learns_at_the_rate_of_diffusers_example_unless_one_is_given(
    base, own, tmp_path, monkeypatch, changes, rate
):
    """examples/text_to_image, dreambooth, custom_diffusion and textual_inversion of diffusers."""
    monkeypatch.setitem(presets.PRESETS, "fine-tuning", presets.FINE_TUNING)

    def rate_of(folder, **more):
        run = run_of(of_one_thing(base, own, folder, **changes, **more))
        return run.stages[0].config.learning_rate

    assert rate_of(tmp_path / "default") == rate
    assert rate_of(tmp_path / "given", learning_rate=3e-3) == 3e-3


def test_every_picture_is_learned_from_however_long_caching_takes_and_half_of_the_minutes_are_left(
    base, tmp_path, monkeypatch, capsys
):
    preset = dataclasses.replace(presets.PRESETS["fine-tuning"], cached_epochs=2)
    monkeypatch.setitem(presets.PRESETS, "fine-tuning", preset)
    monkeypatch.setattr("sd_tf.latent.caching.pictures_at_once", lambda *_: 16)
    monkeypatch.setattr("sd_tf.latent.caching.CACHE_SHARE", 0.0)
    seen, cached = {}, recipe.cached_latents

    def slow(*arguments, **options):
        seen["cache"] = cached(*arguments, **options)
        seen["cache"].seconds = 1e6
        return seen["cache"]

    monkeypatch.setattr(recipe, "cached_latents", slow)
    monkeypatch.setattr(Run, "_fit", lambda run, stage, budget: seen.update(seconds=budget.seconds))
    train(of(base, tmp_path / "run", max_steps=None, max_minutes=1))
    assert len(seen["cache"]) == 40 and seen["seconds"] == 30.0
    assert "learning from" not in capsys.readouterr().out


def test_every_picture_of_the_prior_is_cached_however_little_time_there_is(
    base, own, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("sd_tf.latent.caching.pictures_at_once", lambda *_: 4)
    monkeypatch.setattr("sd_tf.latent.caching.CACHE_SHARE", 0.0)
    seen, cached = {}, recipe.cached_latents

    def kept(run, *arguments, **options):
        seen.update(dataset=run.dataset, cache=cached(run, *arguments, **options))
        return seen["cache"]

    monkeypatch.setattr(recipe, "cached_latents", kept)
    monkeypatch.setattr(Run, "_fit", lambda *_: None)
    flags = {"prior_prompt": "a dress", "prior_pictures": 50, "prior_share": 0.2}
    train(of_one_thing(base, own, tmp_path / "run", **flags, max_steps=None, max_minutes=0.5))
    dataset, cache = seen["dataset"], seen["cache"]
    assert dataset.epochs_of_all > 1 and len(cache) == dataset.epochs_of_all * len(dataset)
    shown = capsys.readouterr()
    assert "learning from" not in shown.out
    assert f"100%, {len(cache):,} of " in shown.err


def test_a_model_of_no_run_is_not_taken_for_a_finished_one(base, tmp_path):
    with pytest.raises(InputError, match="holds a model that no run wrote: name another folder"):
        run_of(of(base, base))
    assert not (base / "run.json").exists()


def test_a_run_of_a_lora_is_no_model(base, tuned):
    with pytest.raises(InputError, match="holds a LoRA, not a model"):
        sd_tf.load(tuned["lora"])


@pytest.mark.parametrize("kind", ["unet", "lora"])
def test_a_finished_run_started_again_does_nothing(base, tuned, kind):
    before = contents(tuned[kind])
    train(of(base, tuned[kind], finetune=kind))
    assert contents(tuned[kind]) == before


def test_a_dry_run_counts_what_learns_and_what_is_frozen(base, tmp_path):
    def parameters(kind):
        lines = describe(run_of(of(base, tmp_path / "run", finetune=kind, dry_run=True)))
        line = next(line for line in lines if "trainable parameters" in line)
        return [int(word.replace(",", "")) for word in line.split() if word.replace(",", "").isdigit()]

    (everything, frozen), (changes, all_frozen) = parameters("unet"), parameters("lora")
    assert changes < everything and all_frozen == frozen + everything
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": None, "finetune": "lora"}, "--finetune is 'lora', which needs --init-from"),
        ({"lora_rank": 4}, "--lora-rank needs --finetune lora"),
        ({"lora_layout": "kohya"}, "--lora-layout needs --finetune lora"),
        ({"finetune": "lora", "lora_layout": "webui"}, "--lora-layout .webui.: .*Valid: diffusers, kohya"),
        ({"finetune": "lora", "lora_rank": 0}, "--lora-rank is 0"),
        ({"finetune": "lora", "lora_targets": "to_q,to_z"}, "'to_z'.*'to_"),
        ({"finetune": "all"}, "--finetune.*'all'"),
        ({"finetune": "textual_inversion"}, "--finetune textual_inversion needs --new-word"),
        ({"like_word": "dress"}, "--like-word needs --finetune textual_inversion"),
        (
            {"init_from": None, "prior_prompt": "a dress"},
            "--prior-prompt is 'a dress', which needs --init-from",
        ),
        ({"prior_prompt": "a dress", "prior_share": 1.0}, "--prior-share is 1.0"),
        (WORD | {"new_word": "my dress"}, "the new word is 'my dress': give one without spaces"),
        ({"beta_schedule": "scaled_linear"}, "--beta-schedule is only for a new model"),
        ({"text_encoder": "clip-mini"}, "--text-encoder is only for a new model"),
        ({"zero_terminal_snr": True}, "--zero-terminal-snr is only for a new model"),
        ({"stage": "autoencoder"}, "--stage is 'autoencoder', which is only for a new model"),
        ({"image_size": 64}, "--image-size is 64, but .* pictures of its own size, 32 x 32: leave it out"),
        ({"prior_pictures": 5}, "--prior-pictures needs --prior-prompt"),
        ({"prior_prompt": " "}, "--prior-prompt is empty"),
        (WORD, "no caption has the new word '<mine>'"),
        ({"init_from": "fashion-mnits"}, "'fashion-mnits': did you mean 'fashion-mnist"),
    ],
    ids=str,
)
def test_flags_that_make_no_sense_are_named_before_anything_is_learned(base, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(of(base, tmp_path / "run") | changes)
    assert not (tmp_path / "run" / "run.json").exists()
