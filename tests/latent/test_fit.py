"""Training from Python: `from_preset` and `fit`, as a notebook calls them."""

import csv
import gc
import json
import signal
import threading
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import sd_tf
from sd_tf.errors import InputError
from sd_tf.latent.options import LatentOptions
from sd_tf.training import observers
from sd_tf.training.history import History
from sd_tf.training.options import OptimizerOptions, RunOptions
from tests.training.tiny import STAGES, STEPS, contents, train_tiny, with_tiny_preset

QUIET = {"steps": STEPS, "options": {"previews": 0}, "verbose": 0}
FIRST_STAGE = QUIET | {"options": {"previews": 0, "stage": "clip"}}  # where one will do
TUNED = QUIET | {"options": {"previews": 0, "warmup_steps": 1}, "learning_rate": 1.0}
DRAWN = {"steps": 2, "engine": "tensorflow", "progress": False}


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with with_tiny_preset():
        yield


@pytest.fixture(scope="module")
def data():
    return sd_tf.open_data("garments")


def new(data, **options):
    return sd_tf.LatentDiffusion.from_preset("tiny", data, **options)


def draw(model):
    return model.generate("a red dress", num_images=2, **DRAWN)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A model, the folder that it was trained in, and the history: the stop button was pressed on the way."""
    folder, model, log = tmp_path_factory.mktemp("runs") / "mine", new(data), observers.Log.__call__

    def press(self, trainer, step, elapsed, means):
        log(self, trainer, step, elapsed, means)
        if (self.stage.name, step) == ("autoencoder", 2):
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observers.Log, "__call__", press)
        with pytest.raises(KeyboardInterrupt, match="autoencoder: run it again to resume from step 2"):
            model.fit(data, folder=folder, **QUIET)
    return model, folder, model.fit(data, folder=folder, **QUIET)


def test_fit_trains_every_stage_and_the_model_draws_what_its_folder_draws(trained):
    model, folder, history = trained
    assert list(dict.fromkeys(history.stage)) == list(STAGES)
    np.testing.assert_array_equal(draw(model), draw(sd_tf.load(folder)))


def test_stopped_and_called_again_it_writes_to_the_bit_what_the_command_line_writes(trained, tmp_path):
    _, folder, _ = trained
    train_tiny(tmp_path / "run", previews=0)
    ours, theirs = contents(folder), contents(tmp_path / "run")
    weights = [name for name in theirs if name.endswith(".safetensors")]
    assert len(weights) == 4
    for name in weights:
        assert ours[name] == theirs[name], name


def test_a_cell_that_is_run_twice_does_nothing_more(trained, data):
    model, folder, history = trained
    before, drawn = contents(folder), draw(model)
    again = model.fit(data, folder=folder, **QUIET)
    assert contents(folder) == before and again.history["loss"] == history.history["loss"]
    np.testing.assert_array_equal(draw(model), drawn)


def test_after_a_restart_of_the_kernel_the_same_cell_finds_the_model(trained, data):
    model, folder, history = trained
    anew = new(data)
    assert anew.fit(data, folder=folder, **QUIET).history["loss"] == history.history["loss"]
    np.testing.assert_array_equal(draw(anew), draw(model))


def test_without_a_folder_nothing_is_left_and_the_model_is_trained(trained, data, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = new(data)
    model.fit(data, **QUIET)
    assert list(tmp_path.iterdir()) == []
    learned = draw(model)
    np.testing.assert_array_equal(learned, draw(trained[0]))
    last_stage = {"options": {"previews": 0, "stage": "diffusion"}}
    model.fit(data, **QUIET | last_stage)  # a finished model learns more
    assert not np.array_equal(draw(model), learned)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(draw(sd_tf.load(tmp_path / "model")), draw(model))


def test_a_trained_model_that_is_gone_leaves_no_network_and_no_graph_behind(trained, data):
    """TensorFlow keeps functions and gradients that it was given until the process ends."""

    def trained_and_forgotten():
        model = new(data)
        model.fit(data, **QUIET)
        for number in (2, 3):  # each traces a graph
            model.generate("a red dress", num_images=number, **DRAWN)
        networks = [weakref.ref(each) for each in (model.unet, model.autoencoder, model.text_encoder)]
        del model
        gc.collect()
        graphs = sum(type(each).__name__ == "FuncGraph" for each in gc.get_objects())
        return [each() for each in networks], graphs

    networks, graphs = zip(*(trained_and_forgotten() for _ in range(3)), strict=True)
    assert networks == ([None] * 3,) * 3
    assert graphs[2] - graphs[0] < 2 * 4  # left by each before; what all models share may be made meanwhile


def settings_of_the_process():
    return {
        "numpy": np.random.get_state()[1].tolist(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "policy": keras.config.dtype_policy().name,
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "strategy": type(tf.distribute.get_strategy()),
    }


def test_fit_leaves_the_process_as_it_was_and_works_in_a_thread_beside_another_model(trained, data):
    model, _, _ = trained
    before, drawn, failed = settings_of_the_process(), draw(model), []

    def work():
        try:
            new(data, dtype="mixed_bfloat16").fit(data, **FIRST_STAGE)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    np.testing.assert_array_equal(draw(model), drawn)
    for thread in threads:
        thread.join()
    assert not failed and settings_of_the_process() == before


def test_a_lora_is_learned_loaded_and_weight_0_restores_the_original_exactly(trained, data, tmp_path):
    _, folder, _ = trained
    model = sd_tf.load(folder)
    plain = draw(model)
    tune = sd_tf.LoRA(rank=2)
    model.fit(data, tune=tune, folder=tmp_path / "lora", **TUNED)
    learned = draw(model)
    assert not np.array_equal(learned, plain)
    model.fit(data, tune=tune, folder=tmp_path / "lora", **TUNED)  # the cell, run twice
    np.testing.assert_array_equal(draw(model), learned)
    other = sd_tf.load(folder)
    other.load_lora(tmp_path / "lora")
    np.testing.assert_array_equal(draw(other), learned)
    model.adaptations.weigh({"lora": 0})
    np.testing.assert_array_equal(draw(model), plain)
    with pytest.raises(InputError, match="the model has LoRAs: .*adaptations.fuse"):
        model.fit(data, tune=tune, folder=tmp_path / "second", **QUIET)
    sha256 = model.weights_sha256()
    model.adaptations.weigh({"lora": 1})
    model.adaptations.fuse()
    assert model.weights_sha256() != sha256
    with pytest.raises(InputError, match="lora began from other weights than the model has now"):
        model.fit(data, tune=tune, folder=tmp_path / "lora", **TUNED)


def test_a_word_is_learned_and_the_model_knows_it(trained, tmp_path):
    _, folder, _ = trained
    pictures = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    data = sd_tf.open_data(pictures, captions=["a <mine> dress"] * 6)
    tune, model = sd_tf.TextualInversion("<mine>", "dress"), sd_tf.load(folder)
    model.fit(data, tune=tune, folder=tmp_path / "word", **TUNED)
    drawn = model.generate("a <mine> dress", **DRAWN)
    learned, before = model.encode_prompts(["a <mine> dress", "a dress dress"])
    assert np.abs(learned - before).max() > 0.1
    model.fit(data, tune=tune, folder=tmp_path / "word", **TUNED)
    np.testing.assert_array_equal(model.generate("a <mine> dress", **DRAWN), drawn)
    again = sd_tf.load(tmp_path / "word").generate("a <mine> dress", **DRAWN)
    np.testing.assert_array_equal(again, drawn)


def test_two_replicas_train_a_model_that_was_read_before(trained, data):
    """Its networks were made outside of the strategy."""
    _, folder, _ = trained
    model = sd_tf.load(folder)
    with pytest.raises(InputError, match="replicas is 2.*virtual CPUs: restart Python"):
        model.fit(data, **QUIET | {"options": {"strategy": "mirrored", "replicas": 2, "previews": 0}})


# -- callbacks ------------------------------------------------------------------------------------


def test_keras_callbacks_hear_of_epochs_in_all_stages_and_may_end_each_of_them(data, tmp_path):
    heard = []
    callbacks = [
        keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: heard.append("begin"),
            on_epoch_end=lambda epoch, logs: heard.append((epoch, sorted(logs)[:1])),
            on_train_end=lambda logs: heard.append("end"),
        ),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TensorBoard(tmp_path / "tensorboard"),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9),  # after the second epoch
    ]
    run = QUIET | {"steps": 200}  # 40 examples, 4 in a step: 10 steps in an epoch
    history = new(data).fit(data, folder=tmp_path / "run", callbacks=callbacks, **run)
    epochs = [item[0] for item in heard if isinstance(item, tuple)]
    assert heard[0] == "begin" and heard[-1] == "end" and heard.count("begin") == 1
    assert epochs == [0, 1, 2, 3, 4, 5]  # two in each stage
    last = dict(zip(history.stage, history.step, strict=True))
    assert list(last) == list(STAGES) and set(last.values()) == {20}
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert len(rows) == 6 and all(float(row["loss"]) > 0 for row in rows)
    assert any((tmp_path / "tensorboard").rglob("events*"))


def test_a_callback_that_raises_ends_the_run_and_leaves_its_checkpoints(data, tmp_path):
    def fail(epoch, logs):
        raise ZeroDivisionError("the callback's own")

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=fail)]
    model = new(data)
    options = {"previews": 0, "stage": "clip", "checkpoint_every": 4}
    with pytest.raises(ZeroDivisionError, match="the callback's own"):
        model.fit(data, steps=20, folder=tmp_path / "run", callbacks=callbacks, options=options, verbose=0)
    assert not (tmp_path / "run" / "clip").exists()
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "clip").iterdir())
    assert steps == ["step-0000004", "step-0000008"]
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (keras.callbacks.BackupAndRestore("x"), "BackupAndRestore is not needed: a run saves and resumes"),
        (keras.callbacks.ModelCheckpoint("x.keras"), "ModelCheckpoint is not needed: a run writes"),
        (keras.callbacks.ReduceLROnPlateau(), "ReduceLROnPlateau is not needed: the option lr_schedule"),
        (keras.callbacks.LearningRateScheduler(lambda e: 1.0), "LearningRateScheduler is not needed"),
        (keras.callbacks.EarlyStopping(restore_best_weights=True), "EarlyStopping has restore_best_weights"),
        ("EarlyStopping", "callbacks has 'EarlyStopping': give instances of keras.callbacks.Callback"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_callbacks_that_a_run_does_without_are_refused_with_the_reason(data, callback, said):
    with pytest.raises(InputError, match=said):
        new(data).fit(data, callbacks=[callback], **QUIET)


class Raise(keras.callbacks.Callback):
    """Ends a run by an error of its own, in the step of that number."""

    def __init__(self, step):
        super().__init__()
        self.steps_left = step

    def on_train_batch_end(self, batch, logs):
        self.steps_left -= 1
        if not self.steps_left:
            raise ZeroDivisionError


def fit_until(step, model, data, **settings):
    with pytest.raises(ZeroDivisionError):
        model.fit(data, callbacks=[Raise(step)], **settings)


def test_a_lora_or_a_word_that_is_stopped_leaves_the_model_as_it_was(trained, data, tmp_path):
    _, folder, _ = trained
    model = sd_tf.load(folder)
    plain, sha256 = draw(model), model.weights_sha256()
    fit_until(2, model, data, tune=sd_tf.LoRA(rank=2), **TUNED)
    with pytest.raises(InputError, match="no caption has the new word"):
        model.fit(data, tune=sd_tf.TextualInversion("<mine>", "dress"), **TUNED)
    assert model.weights_sha256() == sha256 and not model.provenance.taught_words
    model.save(tmp_path / "model")
    for each in (model, sd_tf.load(tmp_path / "model")):
        np.testing.assert_array_equal(draw(each), plain)


def test_a_fine_tuning_that_is_stopped_has_other_weights_than_its_run_began_with(trained, data, tmp_path):
    model = sd_tf.load(trained[1])
    sha256 = model.weights_sha256()
    fit_until(2, model, data, folder=tmp_path / "run", **TUNED)
    assert model.weights_sha256() != sha256
    with pytest.raises(InputError, match="run began from other weights than the model has now"):
        model.fit(data, folder=tmp_path / "run", **TUNED)


def test_a_run_without_a_folder_that_is_stopped_leaves_a_model_that_draws_and_begins_anew(
    trained, data, tmp_path
):
    model = new(data)
    fit_until(STEPS + 2, model, data, **QUIET)  # in the second stage
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(draw(sd_tf.load(tmp_path / "model")), draw(model))
    options = {"previews": 0, "stage": "autoencoder"}
    model.fit(data, folder=tmp_path / "run", **QUIET | {"options": options})
    name = "vae/diffusion_pytorch_model.safetensors"
    assert contents(tmp_path / "run")[name] == contents(trained[1])[name]


# -- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"minutes": -1}, "minutes is -1: give 0.01 or more"),
        ({"minutes": "ten"}, "minutes is 'ten': give a number"),
        ({"steps": 2.5}, "steps is 2.5: give a whole number"),
        ({"steps": 1, "minutes": 1}, "minutes and steps are both given"),
        ({"folder": 3}, "folder is 3: give a path"),
        ({"folder": ""}, "folder is '': give a path"),
        ({"batch_size": 0}, "batch_size is 0: give 1 or more"),
        ({"optimizer": keras.optimizers.AdamW()}, "optimizer is AdamW: give 'adamw' or 'muon', with"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'"),
        ({"tune": "all"}, "tune is 'all': give sd_tf.LoRA"),
        ({"tune": np.array(["a", "b"])}, "tune is array.*: give sd_tf.LoRA"),
        ({"tune": sd_tf.LoRA()}, "tune is 'lora', but the model has learned nothing yet: train it first"),
        ({"tune": sd_tf.LoRA(targets=())}, r"targets is \(\): give a list of strings"),
        ({"tune": sd_tf.LoRA(targets=5)}, "targets is 5: give a list of strings"),
        ({"tune": sd_tf.LoRA(), "options": {"finetune": "unet"}}, "tune is 'unet' in options, beside tune"),
        ({"options": {"init_from": "emoji"}}, "init_from is 'emoji', but the model is there already"),
        ({"epochs": 3}, "unknown argument of fit 'epochs': .*Valid: tune, minutes, steps"),
        ({"folder": "~nobody-of-that-name/run"}, "folder is '~nobody-of-that-name/run': give a path"),
        ({"folder": "a\0b"}, r"folder is 'a\\x00b': give a path"),
        ({"options": {"cache_dir": "a\0b"}}, r"cache_dir a\\x00b cannot be written"),
        ({"options": [RunOptions(previews=1), RunOptions(previews=2)]}, "previews is given twice in options"),
        ({"options": {"overfit": 4}, "batch_size": 8}, "overfit and batch_size are both given"),
        ({"verbose": np.ones(2)}, "verbose is array"),
        ({"callbacks": 3}, "callbacks is 3: give a list"),
        ({"options": {"precsion": 1}}, "unknown option 'precsion': did you mean 'precision'"),
        ({"options": 3}, "options is 3: give a dictionary, or instances of RunOptions, OptimizerOptions"),
        ({"options": {"seed": 1}, "seed": 2}, "seed is given twice"),
        ({"options": {"output": "x"}}, "folder is given in options"),
        ({"options": {"precision": "mixed_float16"}}, "dtype is 'mixed_float16', but the model computes"),
        ({"options": {"workers": 2}}, "workers is only for the command line"),
        ({"options": {"deterministic": True}, "steps": 1}, "deterministic needs tf.config.experimental"),
        ({"options": {"text_encoder": "clip-mini"}}, "text_encoder is 'clip-mini', but the model is made"),
        ({"options": {"image_size": 16}}, "image_size is 16, but the model is made"),
        ({"seed": -1}, "seed is -1"),
        ({"verbose": "loud"}, "verbose is 'loud': give 'auto', 0 or 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_make_no_sense_are_named_in_one_line_and_nothing_is_written(
    data, tmp_path, monkeypatch, arguments, said
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        new(data).fit(data, **{"folder": "run"} | arguments)
    assert "\n" not in str(error.value) and "--" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_options_are_given_as_a_dictionary_or_as_instances(data, tmp_path):
    instances = [
        RunOptions(previews=0, keep_checkpoints=1),
        OptimizerOptions(warmup_steps=1),
        LatentOptions(stage="clip"),
    ]
    new(data).fit(data, steps=1, folder=tmp_path / "run", options=instances, verbose=0)
    before = (tmp_path / "run" / "run.json").read_bytes()
    as_dictionary = {"previews": 0, "keep_checkpoints": 1, "warmup_steps": 1, "stage": "clip"}
    new(data).fit(data, steps=1, folder=tmp_path / "run", options=as_dictionary, verbose=0)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_another_preset_or_option_is_not_taken_for_the_run_of_a_folder(trained, data):
    _, folder, _ = trained
    with pytest.raises(InputError, match="other options .*prediction_type None -> epsilon"):
        new(data, prediction_type="epsilon").fit(data, folder=folder, **QUIET)
    with pytest.raises(InputError, match="other options .*steps 3 -> 4"):
        new(data).fit(data, folder=folder, **QUIET | {"steps": 4})
    with pytest.raises(InputError, match="holds a run that began from random weights"):
        sd_tf.load(folder).fit(data, folder=folder, **QUIET)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"caption_dropout": 0.2}, "caption_dropout is no option of a new model: give it to fit"),
        ({"finetune": "lora"}, "tune is no option of a new model: give it to fit"),
        ({"init_from": "emoji"}, "init_from is no option of a new model: sd_tf.load reads"),
        ({"preset": "tiny"}, "preset is no option of a new model: give it once"),
        ({"dtype": "float9"}, "unknown dtype 'float9': did you mean 'float32'"),
        ({"dtype": 5}, "unknown dtype '5'"),
        ({"seed": -1}, "seed is -1: give a whole number"),
        ({"seed": "x"}, "seed is 'x': give a whole number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_new_model_does_not_take_is_refused_where_it_is_made(data, arguments, said):
    with pytest.raises(InputError, match=said):
        new(data, **arguments)


def test_a_folder_that_is_a_link_to_nothing_or_in_a_circle_is_named(data, tmp_path):
    (tmp_path / "dead").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name, said in (("dead", "dead is a link to nothing"), ("circle", "give a path .*circle")):
        with pytest.raises(InputError, match=said):
            new(data).fit(data, folder=tmp_path / name, **QUIET)


def test_a_preset_that_is_not_there_names_the_nearest(data):
    with pytest.raises(InputError, match="unknown preset 'tiniy': did you mean 'tiny'"):
        sd_tf.LatentDiffusion.from_preset("tiniy", data)
    with pytest.raises(InputError, match="unknown option 'imagesize': did you mean 'image_size'"):
        new(data, imagesize=32)


# -- what comes back ------------------------------------------------------------------------------


def test_the_history_has_an_entry_for_each_line_and_plots(trained, tmp_path):
    _, folder, history = trained
    assert len(history) == 3 and set(history.history) >= {"loss", "learning_rate", "kl"}
    assert all(len(values) == 3 for values in history.history.values())
    assert np.isnan(history.history["kl"][0]) and history.history["kl"][1] > 0
    assert history.epoch == [0.3, 0.3, 0.3] and history.step == [STEPS] * 3
    figure = history.plot("loss")
    assert [axes.get_title() for axes in figure.axes] == list(STAGES)
    with pytest.raises(InputError, match="unknown metric 'los': did you mean 'loss'"):
        history.plot("los")
    assert repr(history).startswith("<History of 3 entries: clip loss ")
    assert len(History.of_folder(tmp_path)) == 0


def test_a_history_without_a_loss_or_of_a_damaged_log_is_one_all_the_same(tmp_path):
    entry = {"stage": "a", "step": 1, "elapsed": 60}
    two_players = [entry | {"critic/loss": 0.5}]
    assert repr(History(two_players)) == "<History of 1 entries>"
    changes = {"stage": ["a"]}, {"elapsed": "x"}, {"loss": None}, {"loss": 2}
    damaged = [3, *(entry | change for change in changes)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in damaged) + '{"stage":')
    history = History.of_folder(tmp_path)
    np.testing.assert_array_equal(history.history["loss"], [np.nan, 2])
    assert repr(history) == "<History of 2 entries: a loss 2.0000>"
    assert len(history.plot().axes) == 1
    with pytest.raises(InputError, match="unknown metric"):
        history.plot(["loss"])
    with pytest.raises(InputError, match="nothing to plot"):
        History([]).plot()


def test_the_summary_counts_what_the_networks_hold(trained, data, capsys):
    model, _, _ = trained
    networks = model.text_encoder, model.unet, model.autoencoder
    for each in (model, new(data)):
        each.summary()
        said = capsys.readouterr().out
        assert all(f"{network.count_params():,} weights" in said for network in networks)
        assert f"{sum(network.count_params() for network in networks):,} weights" in said


@pytest.mark.parametrize("name", ["text_encoder", "unet", "autoencoder"])
def test_networks_are_keras_models_that_save_as_keras_files(trained, tmp_path, name):
    network = getattr(trained[0], name)
    assert isinstance(network, keras.Model)
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    assert again.config == network.config
    for ours, theirs in zip(again.variables, network.variables, strict=True):
        np.testing.assert_array_equal(ours.value, theirs.value)
