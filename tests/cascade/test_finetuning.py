"""`--init-from` of a cascade: LoRAs of its stages, the attention alone, a new word, DreamBooth's prior."""

import signal

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load_file

import sd_tf
from sd_tf import generate, train
from sd_tf.cascade import presets, recipe
from sd_tf.cascade.commands import defaults
from sd_tf.cascade.options import CascadeOptions
from sd_tf.cascade.stages import PREVIEW_STEPS, BaseStage
from sd_tf.checkpoints.names import keyed_variables
from sd_tf.checkpoints.word_files import FILE as WORD_FILE
from sd_tf.errors import InputError
from sd_tf.lora.files import FILE
from sd_tf.text.new_words import embedding_of, token_embeddings
from sd_tf.training import observers
from sd_tf.training.options import StageConfig
from tests.cascade.conftest import tiny_cascade
from tests.cascade.test_fit import TINY
from tests.conftest import shake_variables

SETTINGS = {"steps": 2, "options": {"previews": 0}, "verbose": 0}
DRAWING = {"steps": 1, "stages": 1, "seed": 0, "progress": False}
WORD = {"finetune": "textual_inversion", "new_word": "<mine>", "like_word": "dress"}


@pytest.fixture(scope="module", autouse=True)
def tiny():
    quick = StageConfig(batch_size=4, learning_rate=1e-2, lr_schedule="constant", warmup_steps=1)
    tuning = presets.replace(
        TINY, stages=tuple(presets.replace(each, training=quick) for each in TINY.stages), max_minutes=0.1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", TINY)
        patch.setitem(presets.PRESETS, "fine-tuning", tuning)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a cascade with a CLIP and no layer that is still at zero."""
    model = sd_tf.CascadedDiffusion.from_preset("tiny", "garments")
    for number, stage in enumerate(model.stages):
        shake_variables(stage.unet, number, 0.05)
    model.save(folder := tmp_path_factory.mktemp("base") / "model")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of four pictures of one thing, with captions."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(4):
        PIL.Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a photo of a <mine> dress")
    return folder


def flags(base, data, output, *others):
    own = ["cascade", "--init-from", str(base), "--dataset", "folder", "--data-dir", str(data)]
    return [*own, "--max-steps", "2", "--previews", "0", "--output", str(output), *others]


def kernels(model, number):
    unet = model.stages[number].unet
    return {key: np.asarray(variable.value).copy() for key, variable in keyed_variables(unet).items()}


def changed(before, after):
    return {key for key in before if not np.array_equal(before[key], after[key])}


def loras(folder):
    return {name: load_file(folder / name / FILE) for name in ("base", "sr2")}


@pytest.fixture(scope="module")
def tuned(base, data, tmp_path_factory):
    """The folder of a finished LoRA of both stages, the model, and its networks as they were before and when
    they had learned."""
    model, folder, learned = sd_tf.load(base), tmp_path_factory.mktemp("tuned") / "mine", {}
    plain = [kernels(model, number) for number in (0, 1)]
    inputs = {}
    for number, stage in enumerate(model.stages):
        rng = np.random.default_rng(0)
        size, channels = stage.image_size, stage.config.in_channels
        shapes = ((2, *size, channels), (2, model.text_encoder.length, model.text_encoder.width))
        images, context = (rng.standard_normal(shape).astype("float32") for shape in shapes)
        inputs[number] = images, np.array([3, 700]), context, np.array([9, 90]) if number else None

    def finish(planned, run, stage, plain=recipe.PlannedPixelStage.finish):
        images, timesteps, context, labels = inputs[planned.number]
        learned[planned.number] = np.asarray(
            planned.stage.unet(images, timesteps, context, class_labels=labels)
        )
        plain(planned, run, stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.PlannedPixelStage, "finish", finish)
        model.fit(f"folder:{data}", folder=folder, tune=sd_tf.LoRA(rank=4, alpha=2), **SETTINGS)
    drawn = {
        number: np.asarray(model.stages[number].denoiser("tensorflow")(*each))
        for number, each in inputs.items()
    }
    return folder, model, plain, learned, drawn


def test_a_lora_of_all_stages_is_a_small_file_for_each(tuned):
    folder, model, plain, _, _ = tuned
    assert {file.name for file in folder.rglob("*.safetensors")} == {FILE}
    assert not (folder / "model_index.json").exists()
    for name, tensors in loras(folder).items():
        layers = {key.split(".lora_")[0].removesuffix(".0").rpartition(".")[2] for key in tensors}
        assert layers == set(recipe.LORA_TARGETS)
        assert all(values.shape[0] == 4 for key, values in tensors.items() if ".lora_A." in key)
        assert all(key.startswith("unet.") and ".attentions." in key for key in tensors), name
    assert model.adaptations.weights == {"mine": 1.0}
    for number in (0, 1):
        keys = changed(plain[number], kernels(model, number))
        assert keys and all(".attentions." in key for key in keys)


def test_a_loaded_lora_is_the_network_that_was_trained(tuned):
    _, _, _, learned, drawn = tuned
    for number, theirs in learned.items():
        assert np.abs(drawn[number] - theirs).max() <= 1e-4 * theirs.std()


def test_a_lora_is_drawn_with_in_another_process_and_switched_off(tuned, base, tmp_path):
    folder, trained, plain, _, _ = tuned
    settings = ["a dress", "--model", str(base), "--steps", "1", "--stages", "1", "--output", str(tmp_path)]
    generate.main([*settings, "--lora", str(folder), "--lora-weight", "0.5"])
    with trained.adaptations.weighing({"mine": 0.5}):
        expected = trained.generate("a dress", **DRAWING)[0]
    with PIL.Image.open(tmp_path / "a-dress-0.png") as drawn:
        assert np.abs(np.asarray(drawn).astype(int) - expected).max() <= 1
    with trained.adaptations.switched_off():
        assert all(not changed(plain[number], kernels(trained, number)) for number in (0, 1))


@pytest.mark.slow
def test_stages_are_trained_one_by_one_to_the_same_lora(tuned, base, data, tmp_path):
    own = ["--finetune", "lora", "--lora-rank", "4", "--lora-alpha", "2"]
    train.main(flags(base, data, tmp_path / "run", *own, "--stages", "sr2"))
    assert not (tmp_path / "run" / "base").exists()
    model = sd_tf.load(base)
    model.load_lora(tmp_path / "run")
    assert {module.split(".")[0] for module in model.adaptations._original} == {"sr2"}
    train.main(flags(base, data, tmp_path / "run", *own, "--stages", "base"))
    ours, theirs = loras(tmp_path / "run"), loras(tuned[0])
    for name in ("base", "sr2"):
        assert ours[name].keys() == theirs[name].keys()
        assert all(np.array_equal(ours[name][key], theirs[name][key]) for key in ours[name])


@pytest.mark.slow
def test_a_stopped_lora_leaves_the_model_as_it_was_and_resumes_to_the_bit(
    tuned, base, data, tmp_path, monkeypatch
):
    folder, _, plain, _, _ = tuned
    model, lora = sd_tf.load(base), {"tune": sd_tf.LoRA(rank=4, alpha=2), "folder": tmp_path / "mine"}

    def interrupt(log, trainer, step, elapsed, means, plain=observers.Log.__call__):
        plain(log, trainer, step, elapsed, means)
        if step == 1 and trainer.stage.name == "sr2":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(observers.Log, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt, match="stopped in stage sr2"):
            model.fit(f"folder:{data}", **lora, **SETTINGS)
    assert all(not changed(plain[number], kernels(model, number)) for number in (0, 1))
    model.fit(f"folder:{data}", **lora, **SETTINGS)
    ours, theirs = loras(tmp_path / "mine"), loras(folder)
    for name in ("base", "sr2"):
        assert all(np.array_equal(ours[name][key], theirs[name][key]) for key in theirs[name])
    assert model.adaptations.weights == {"mine": 1.0}
    before = kernels(model, 0)
    model.fit(f"folder:{data}", **lora, **SETTINGS)  # it is finished
    assert not changed(before, kernels(model, 0)) and model.adaptations.weights == {"mine": 1.0}
    with pytest.raises(InputError, match="the model has LoRAs: merge them"):
        model.fit(f"folder:{data}", tune=sd_tf.LoRA(), folder=tmp_path / "other", **SETTINGS)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_attention_alone_learns_and_a_whole_model_is_written(base, data, tmp_path):
    train.main(flags(base, data, tmp_path / "run", "--finetune", "cross_attention"))
    before, after = sd_tf.load(base), sd_tf.load(tmp_path / "run")
    for number in (0, 1):
        old, new = kernels(before, number), kernels(after, number)
        wanted = {key for key in old if ".attentions." in key}
        found = changed(old, new)
        assert found <= wanted and len(found) > 0.8 * len(wanted)


def test_a_word_is_learned_and_nothing_else(base, data, tmp_path):
    model = sd_tf.load(base)
    model.fit(
        f"folder:{data}", tune=sd_tf.TextualInversion("<mine>", "dress"), folder=tmp_path / "run", **SETTINGS
    )
    before, after = sd_tf.load(base), sd_tf.load(tmp_path / "run")
    for number in (0, 1):
        assert not changed(kernels(before, number), kernels(after, number))
    table, known = (
        np.asarray(token_embeddings(each.text_encoder.network()).value) for each in (after, before)
    )
    np.testing.assert_array_equal(table[: len(known)], known)
    encoder = before.text_encoder
    begun = embedding_of(encoder.network(), encoder.tokenizer, "dress")
    assert np.abs(table[after.text_encoder.tokenizer.token_id("<mine>")] - begun).max() > 1e-4
    before.load_textual_inversion(tmp_path / "run" / WORD_FILE)
    prompt = "a photo of a <mine> dress"
    drawn = [each.generate(prompt, **DRAWING) for each in (model, after, before)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[1], drawn[2])
    main = ["--model", str(base), "--steps", "1", "--stages", "1", "--output", str(tmp_path / "out")]
    generate.main([prompt, *main, "--textual-inversion", str(tmp_path / "run")])
    (file,) = (tmp_path / "out").glob("*.png")
    with PIL.Image.open(file) as picture:
        np.testing.assert_array_equal(np.asarray(picture), drawn[2][0])


def test_the_gradient_of_a_word_is_that_of_its_row_in_the_text_encoder(base, data, tmp_path):
    import tensorflow as tf

    from sd_tf.cascade.commands import model_for_training
    from sd_tf.cascade.stage import by_condition
    from sd_tf.data.open import open_data
    from sd_tf.diffusion.conditions import Condition, drop_captions
    from sd_tf.diffusion.losses import diffusion_loss
    from sd_tf.training.options import OptimizerOptions, RunOptions
    from sd_tf.training.run import Run

    options = CascadeOptions(init_from=str(base), **WORD)
    opened = open_data(f"folder:{data}")
    model = model_for_training(options, opened, "float32", 0)
    own = recipe.recipe_of(model, options, tmp_path / "run")
    run_options = RunOptions(output=str(tmp_path / "run"), max_steps=1)
    run = Run(own, opened, run_options, OptimizerOptions(), verbose=False)
    run.decode(run.dataset)
    (planned,) = run.stages
    stage = planned.make(run, run.budget(planned))
    batch = next(iter(stage.batches(0)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(stage.loss(batch)["loss"])
    (ours,) = tape.gradient(loss, stage.network.trainable_variables)
    tower = model.text_encoder.network()
    table, first = token_embeddings(tower), model.stages[0]
    with tf.GradientTape() as tape:
        states = tf.cast(tower(batch["token_ids"]).last_hidden_state, tf.float32)
        empty = Condition(model.encode_prompts([""]).context)
        condition = drop_captions(Condition(states), empty, batch["dropped"])
        arguments = batch["images"], condition, batch["timesteps"], batch["noise"]
        network = by_condition(first.unet)
        loss = tf.reduce_mean(diffusion_loss(network, *arguments, first.schedule, None, True))
    theirs = tf.convert_to_tensor(tape.gradient(loss, table.value))[stage.word.row]
    assert np.abs(theirs).max() > 1e-8
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_prior_pictures_are_drawn_by_the_model_as_it_was_and_learned_from(tuned, base, data, tmp_path):
    lora = ["--finetune", "lora", "--lora-rank", "4", "--lora-alpha", "2", "--stages", "base"]
    prior = ["--prior-prompt", "a dress", "--prior-pictures", "4"]
    train.main(flags(base, data, tmp_path / "run", *lora, *prior))
    files = sorted((tmp_path / "run" / "prior").iterdir())
    expected = sd_tf.load(base).generate("a dress", 4, engine="tensorflow", progress=False)
    assert len(files) == 4
    for file, image in zip(files, expected, strict=True):
        with PIL.Image.open(file) as picture:
            np.testing.assert_array_equal(np.asarray(picture), image)
    ours, theirs = (load_file(folder / "base" / FILE) for folder in (tmp_path / "run", tuned[0]))
    assert any(not np.array_equal(ours[key], theirs[key]) for key in ours)


def test_previews_show_the_lora_of_a_model_that_has_drawn_and_convert_nothing(
    base, data, tmp_path, monkeypatch
):
    """The network was compiled without the LoRA."""
    seen, preview = {}, BaseStage.preview

    def spy(stage):
        seen["prompts"] = list(stage.dataset.preview_prompts)
        seen["images"], rows = preview(stage)
        return seen["images"], rows

    monkeypatch.setattr(BaseStage, "preview", spy)
    monkeypatch.setattr("sd_tf.generation.engines.write_conversion", lambda *_: pytest.fail("converted"))
    drawing = {"num_images": 2, "steps": PREVIEW_STEPS, "stages": 1, "engine": "tensorflow"}
    model = sd_tf.load(base)
    model.generate("a dress", progress=False, **drawing)
    options = {"previews": 1, "stages": ("base",)}
    lora = {"tune": sd_tf.LoRA(), "learning_rate": 0.1, "folder": tmp_path / "mine"}
    model.fit(f"folder:{data}", **SETTINGS | lora | {"steps": 4, "options": options})
    adapted = model.generate(seen["prompts"], progress=False, **drawing).astype(int)
    with model.without_adaptations():
        plain = model.generate(seen["prompts"], progress=False, **drawing).astype(int)
    assert np.abs(seen["images"] - adapted).mean() < 0.1 * np.abs(adapted - plain).mean()


def test_a_lora_of_a_stage_that_no_run_wrote_is_not_taken_for_a_finished_one(tuned, base, data, tmp_path):
    (tmp_path / "run" / "sr2").mkdir(parents=True)
    (tmp_path / "run" / "sr2" / FILE).write_bytes((tuned[0] / "sr2" / FILE).read_bytes())
    with pytest.raises(InputError, match="holds a model that no run wrote: name another folder"):
        train.main(flags(base, data, tmp_path / "run", "--finetune", "lora"))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"options": {"prior_prompt": "a dress"}}, "prior_prompt is 'a dress', which needs a stage"),
        ({"tune": sd_tf.TextualInversion("<mine>", "dress")}, "is 'textual_inversion', which needs a stage"),
    ],
)
def test_what_needs_pictures_from_text_is_not_for_a_model_that_only_enlarges(
    base, data, tmp_path, own, message
):
    whole = sd_tf.load(base)
    model = sd_tf.CascadedDiffusion(whole.stages[1:], whole.text_encoder)
    with pytest.raises(InputError, match=message):
        model.fit(f"folder:{data}", folder=tmp_path / "run", **SETTINGS | own)
    assert not (tmp_path / "run").exists()


def test_each_kind_has_the_learning_rate_of_diffusers_examples(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "fine-tuning", presets.FINE_TUNING)
    for changes, rate in (
        ({}, "1e-05"),
        ({"prior_prompt": "a toy"}, "5e-06"),
        ({"finetune": "lora"}, "0.0001"),
        (WORD, "0.0005"),
    ):
        options = CascadeOptions(init_from="x", **changes)
        assert defaults("folder", options)["learning_rate"] == rate
        assert f"{recipe._fine_tuning_preset(options).stage(1).training.learning_rate:g}" == rate


def test_a_dry_run_counts_what_learns_and_what_is_frozen(tuned, base, data, tmp_path, capsys):
    lora = ["--finetune", "lora", "--lora-rank", "4", "--stages", "base"]
    train.main(flags(base, data, tmp_path / "run", *lora, "--dry-run"))
    line = next(line for line in capsys.readouterr().out.splitlines() if "trainable parameters" in line)
    learns, frozen = (int(word.replace(",", "")) for word in line.split() if word[0].isdigit())
    assert learns == sum(values.size for values in loras(tuned[0])["base"].values())
    assert frozen == sum(values.size for values in tuned[2][0].values())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--stages", "base"], "--stages is for a new model or a LoRA: leave it out"),
        (["--stages", "sr3", "--finetune", "lora"], "unknown --stages 'sr3'.*Valid: base, sr2"),
        (["--lora-rank", "4"], "--lora-rank needs --finetune lora: add it"),
        (["--finetune", "lora", "--lora-targets", "to_z"], "unknown layer for a LoRA 'to_z'.*to_v"),
        (["--finetune", "lora", "--lora-targets", "class_embedding"], "unknown layer for a LoRA"),
        (["--finetune", "lora", "--snapshots", "2"], "--snapshots saves whole UNets: leave it out"),
        (
            ["--finetune", "textual_inversion", "--new-word", "<a>", "--like-word", "dress", "--dry-run"],
            "--dry-run cannot estimate --finetune textual_inversion",
        ),
        (
            ["--finetune", "textual_inversion", "--new-word", "<other>", "--like-word", "dress"],
            "no caption has the new word '<other>'",
        ),
    ],
)
def test_what_makes_no_sense_is_named_and_nothing_is_left(base, data, tmp_path, own, message):
    with pytest.raises(InputError, match=message):
        train.main(flags(base, data, tmp_path / "run", *own))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_lora_needs_a_trained_model(data, tmp_path):
    new = ["cascade", "--dataset", "folder", "--data-dir", str(data), "--output", str(tmp_path / "run")]
    with pytest.raises(InputError, match="--finetune is 'lora', which needs --init-from: name the model"):
        train.main([*new, "--finetune", "lora"])
    model = sd_tf.CascadedDiffusion.from_preset("tiny", "garments")
    with pytest.raises(InputError, match="the model has learned nothing yet: train it first"):
        model.fit(f"folder:{data}", tune=sd_tf.LoRA(), **SETTINGS)
    with pytest.raises(InputError, match="layout is 'kohya', which is not for this kind of model"):
        model.fit(f"folder:{data}", tune=sd_tf.LoRA(layout="kohya"), **SETTINGS)


def test_a_word_cannot_be_taught_to_a_t5_which_is_said_before_anything_is_trained(data, tmp_path):
    tiny_cascade().save(tmp_path / "model")
    word = ["--finetune", "textual_inversion", "--new-word", "<mine>", "--like-word", "dress"]
    with pytest.raises(InputError, match="teaches a CLIP a word, and this model's text encoder is a T5 or"):
        train.main(flags(tmp_path / "model", data, tmp_path / "run", *word))
    assert not (tmp_path / "run").exists()
