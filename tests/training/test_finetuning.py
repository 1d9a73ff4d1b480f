"""`--init-from`: a model learns more, all of it, its cross-attention, or low-rank changes kept apart."""

import dataclasses

import numpy as np
import pytest

import sd_tf
from sd_tf import presets
from sd_tf.checkpoints.lora import FILE, read_lora
from sd_tf.checkpoints.names import keyed_variables
from sd_tf.errors import InputError
from sd_tf.training.dry_run import describe
from sd_tf.training.run import Run
from tests.conftest import shake_variables
from tests.training.test_run import TINY, config, contents, with_tiny_preset

KINDS = ("unet", "cross_attention", "lora")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with with_tiny_preset(), pytest.MonkeyPatch.context() as monkeypatch:
        quick = dataclasses.replace(TINY.diffusion_stage, optimizer="adamw", learning_rate=1e-2)
        preset = dataclasses.replace(presets.FINE_TUNING, diffusion_stage=quick, cached_epochs=1)
        monkeypatch.setitem(presets.PRESETS, "fine-tuning", preset)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of sizes unlike those of any preset, with no layer that is still at zero."""
    folder = tmp_path_factory.mktemp("base")
    Run(config(folder / "run")).train()
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
        Run(of(base, folders[kind], finetune=kind)).train()
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


def test_a_loaded_lora_is_the_network_that_was_trained(base, tmp_path, monkeypatch):
    """What the run drew on its way with Keras' own low-rank layers, and what the file says, are the same."""
    from sd_tf.training import run as runs

    seen = {}
    learned = runs.learned_changes

    def spy(unet):
        latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
        context = np.random.default_rng(1).standard_normal((2, 24, 8)).astype("float32")
        seen["inputs"] = latents, np.array([10, 700], np.int32), context
        seen["output"] = np.asarray(unet(*seen["inputs"]))
        return learned(unet)

    monkeypatch.setattr(runs, "learned_changes", spy)
    flags = {"finetune": "lora", "lora_rank": 3, "lora_alpha": 6.0, "lora_targets": "to_q,proj_in,conv1"}
    Run(of(base, tmp_path / "run", **flags)).train()
    model = sd_tf.load(base)
    before = np.asarray(model.unet(*seen["inputs"]))
    model.load_lora(tmp_path / "run", name="mine")
    np.testing.assert_allclose(np.asarray(model.unet(*seen["inputs"])), seen["output"], atol=1e-5)
    assert np.abs(seen["output"] - before).max() > 1e-3
    model.adaptations.weigh({"mine": 0})
    np.testing.assert_array_equal(np.asarray(model.unet(*seen["inputs"])), before)


@pytest.mark.parametrize("kind", ["unet", "lora"])
def test_a_finished_run_started_again_does_nothing(base, tuned, kind):
    before = contents(tuned[kind])
    Run(of(base, tuned[kind], finetune=kind)).train()
    assert contents(tuned[kind]) == before


def test_a_dry_run_counts_what_learns_and_what_is_frozen(base, tmp_path):
    def parameters(kind):
        lines = describe(Run(of(base, tmp_path / "run", finetune=kind, dry_run=True)))
        line = next(line for line in lines if "parameters, and" in line)
        return [int(word.replace(",", "")) for word in line.split() if word.replace(",", "").isdigit()]

    (everything, frozen), (changes, all_frozen) = parameters("unet"), parameters("lora")
    assert changes < everything and all_frozen == frozen + everything
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": None, "finetune": "lora"}, "--finetune lora needs --init-from"),
        ({"lora_rank": 4}, "--lora-rank is of --finetune lora"),
        ({"finetune": "lora", "lora_rank": 0}, "--lora-rank is 0"),
        ({"finetune": "lora", "lora_targets": "to_q,to_z"}, "'to_z'.*'to_"),
        ({"finetune": "all"}, "--finetune.*'all'"),
        ({"prediction_type": "epsilon"}, "--prediction-type is of a new model"),
        ({"text_encoder": "clip-mini"}, "--text-encoder is of a new model"),
        ({"zero_terminal_snr": True}, "--zero-terminal-snr is of a new model"),
        ({"stage": "autoencoder"}, "--stage autoencoder is of a new model"),
        ({"image_size": 64}, "draws pictures of 32 x 32: .* leave --image-size out"),
        ({"init_from": "fashion-mnits"}, "'fashion-mnits': did you mean 'fashion-mnist"),
    ],
    ids=str,
)
def test_flags_that_make_no_sense_are_named_before_anything_is_learned(base, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        Run(dataclasses.replace(of(base, tmp_path / "run"), **changes)).train()
    assert not list(tmp_path.rglob("*.safetensors"))
