"""The GAN's stage: its batches, what its losses are made of, and both players' moves."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from sd_tf.data.garments import Garments
from sd_tf.gan.config import Augmentation, GanLosses
from sd_tf.gan.stages import DISCRIMINATOR, GENERATOR, cut_off
from sd_tf.training.gradient_penalty import gradient_penalty
from sd_tf.training.step import Step
from tests.conftest import shake_variables
from tests.gan.small import DRAWS, JUDGES, small_stage

ONE_SCALE = {"multi_scale_input": False, "multi_scale_output": False}
BY_BOTH = {"vision_channels": (24, 48, 96), "vision_width": 8}
BY_VISION = BY_BOTH | {"judges_pixels": False}


@pytest.fixture(scope="module")
def garments():
    return Garments(32)


def first_batches(stage, first, number):
    return [
        {name: value.numpy() for name, value in batch.items()} for batch in stage.batches(first).take(number)
    ]


def test_batches_are_a_function_of_their_number(garments):
    stage = small_stage(garments, augmentation=Augmentation())
    several = first_batches(stage, 0, 3)
    [third] = first_batches(stage, 2, 1)
    for name, value in several[2].items():
        np.testing.assert_array_equal(third[name], value)
    assert np.abs(several[0]["z"] - several[1]["z"]).max() > 0.1
    halves = [first_batches_of_part(stage, part) for part in ((0, 2), (1, 2))]
    for name, value in several[0].items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), value)


def first_batches_of_part(stage, part):
    [batch] = [{k: v.numpy() for k, v in batch.items()} for batch in stage.batches(0, part).take(1)]
    return batch


def test_a_mismatched_text_is_that_of_another_example_which_says_something_else(garments):
    stage = small_stage(garments)
    batches = first_batches(stage, 0, 8)
    own, other, mismatched = (
        np.concatenate([batch[name] for batch in batches])
        for name in ("states", "other_states", "mismatched")
    )
    differs = np.abs(own - other).max(axis=(1, 2)) > 0
    assert (differs[mismatched]).all() and mismatched.mean() > 0.5
    assert not (differs & ~mismatched).any() or mismatched.any()


def losses_of(stage, player, batch):
    return {name: np.asarray(value) for name, value in stage.losses(batch, player, None).items()}


def test_the_losses_are_the_sums_of_their_parts(garments):
    stage = small_stage(garments, GanLosses(gamma=0.5, matching=2.0))
    [batch] = stage.batches(0).take(1)
    found = losses_of(stage, DISCRIMINATOR, batch)
    expected = found["adversarial"] + 0.25 * (found["r1"] + found["r2"]) + 2.0 * found["matching"]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    found = losses_of(stage, GENERATOR, batch)
    np.testing.assert_allclose(found["loss"], found["adversarial"])


WITH_ENCODER = dataclasses.replace(DRAWS, encoder_channels=(8, 8, 8, 12))


def test_half_of_a_batch_is_drawn_again_from_what_the_encoder_says(garments):
    weights = GanLosses(reconstruction=3.0, perceptual=2.0, kl=0.5)
    stage = small_stage(garments, weights, draws=WITH_ENCODER)
    shake_variables(stage.generator)
    [batch] = stage.batches(0).take(1)
    found = losses_of(stage, GENERATOR, batch)
    [_, code] = stage.generator.read(batch["states"][:2], batch["text_mask"][:2])
    mean, log_variance = map(np.asarray, stage.generator.encoder(batch["images"][:2], code))
    z = mean + np.exp(0.5 * log_variance) * np.asarray(batch["posterior noise"])[:2]
    drawn = cut_off(stage.generator(z, batch["states"][:2], batch["text_mask"][:2])[-1])
    off = np.abs(np.asarray(drawn - batch["images"][:2])).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found["reconstruction/sum"], [*off, 0, 0], rtol=1e-4)
    apart = np.asarray(stage.vision.distance(drawn, batch["images"][:2]))
    np.testing.assert_allclose(found["perceptual/sum"], [*apart, 0, 0], rtol=1e-4)
    away = 0.5 * (mean**2 + np.exp(log_variance) - log_variance - 1).sum(axis=1)
    np.testing.assert_allclose(found["divergence/sum"], [*away, 0, 0], rtol=1e-4)
    parts = 3.0 * found["reconstruction/sum"] + 2.0 * found["perceptual/sum"] + 0.5 * found["divergence/sum"]
    np.testing.assert_allclose(found["loss"], found["adversarial"] + 2 * parts, rtol=1e-5)  # mean over a half


def test_the_encoder_moves_with_the_generator(garments):
    stage = small_stage(garments, draws=WITH_ENCODER)
    step = Step(stage, tf.distribute.get_strategy(), "float32")
    step.learners[GENERATOR].optimizer.learning_rate.assign(1e-3)
    before = [np.array(v.value) for v in stage.generator.encoder.trainable_variables]
    for _ in range(2):  # its second convolutions start at zero
        means = step(*stage.batches(0).take(2))
    assert {"generator/reconstruction/sum", "generator/divergence/sum"} <= set(means)
    after = [np.array(v.value) for v in stage.generator.encoder.trainable_variables]
    assert all(np.abs(new - old).max() > 0 for new, old in zip(after, before, strict=True))


def test_what_is_beyond_black_and_white_is_cut_off_and_can_come_back():
    pixels = tf.constant([-0.5, 0.5, -1.5, -1.5, 1.5, 1.5])
    upstream = tf.constant([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # a step is taken against it
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        shown = cut_off(pixels)
    np.testing.assert_array_equal(shown, [-0.5, 0.5, -1, -1, 1, 1])
    found = tape.gradient(shown, pixels, output_gradients=upstream)
    np.testing.assert_array_equal(found, [1, -1, 0, -1, 1, 0])


def test_judged_in_one_pass_they_are_judged_as_one_by_one(garments):
    stage = small_stage(garments, GanLosses(gamma=0.5))
    shake_variables(stage.discriminator)
    [batch] = stage.batches(0).take(1)
    found, judge, text = (
        losses_of(stage, DISCRIMINATOR, batch),
        stage.discriminator,
        stage.discriminator.code_of,
    )
    own, other = (text(batch[f"{of}states"], batch[f"{of}text_mask"]) for of in ("", "other_"))
    drawn = tuple(map(cut_off, stage.generator(batch["z"], batch["states"], batch["text_mask"])))
    real = tuple(judge.pyramid_of(batch["images"])[::-1])
    logits, r1 = gradient_penalty(lambda x: judge.judged(judge.seen(x), own), real)
    drawn_logits, r2 = gradient_penalty(lambda x: judge.judged(judge.seen(x), own), drawn)
    mismatched = judge.judged(judge.seen(real), other)
    softplus = lambda x: np.logaddexp(0, np.asarray(x)).mean(axis=1)  # noqa: E731
    np.testing.assert_allclose(found["r1"], r1, rtol=1e-4)
    np.testing.assert_allclose(found["r2"], r2, rtol=1e-4)
    np.testing.assert_allclose(found["adversarial"], softplus(drawn_logits - logits), rtol=1e-4)
    expected = np.where(batch["mismatched"], softplus(mismatched - logits), 0.0)
    np.testing.assert_allclose(found["matching"], expected, rtol=1e-4)


def test_parts_are_left_out_by_a_weight_of_zero_or_without_a_text(garments):
    stage = small_stage(garments, GanLosses(matching=0.0))
    [batch] = stage.batches(0).take(1)
    assert "other_states" not in batch and "matching" not in losses_of(stage, DISCRIMINATOR, batch)
    plain = dataclasses.replace(DRAWS, text_dim=None, cross_attention=(False,) * 4)
    stage = small_stage(garments, draws=plain, judges=dataclasses.replace(JUDGES, text_dim=None))
    [batch] = stage.batches(0).take(1)
    assert set(batch) == {"images", "z", "groups"}
    assert np.isfinite(losses_of(stage, DISCRIMINATOR, batch)["loss"]).all()


@pytest.mark.parametrize("kind", ["relativistic", "non_saturating"])
@pytest.mark.parametrize("judges", [{}, ONE_SCALE, BY_VISION, BY_BOTH])
def test_both_players_move_and_only_their_own_weights(garments, kind, judges):
    judges = dataclasses.replace(JUDGES, **judges)
    stage = small_stage(garments, GanLosses(kind), Augmentation(0.1, 0.2), judges=judges)
    step = Step(stage, tf.distribute.get_strategy(), "float32")
    for learner in step.learners.values():
        learner.optimizer.learning_rate.assign(1e-3)
    before = {name: [np.array(v.value) for v in learner.variables] for name, learner in step.learners.items()}
    means = step(*stage.batches(0).take(2))
    assert {"discriminator/loss", "generator/loss", "generator/gradient norm"} <= set(means)
    assert all(np.isfinite(value) for value in means.values())
    for name, learner in step.learners.items():
        moved = [
            np.abs(np.array(v.value) - old).max()
            for v, old in zip(learner.variables, before[name], strict=True)
        ]
        assert max(moved) > 1e-5


@pytest.mark.parametrize(
    ("right", "spread", "said"),
    [
        (1.0, 1.0, "the discriminator has won"),
        (0.0, 1.0, "the generator has won"),
        (0.7, 0.0, "it has collapsed"),
        (0.9, 0.8, None),
        (float("nan"), 1.0, None),
    ],
)
def test_it_stops_where_a_player_has_won_for_long(garments, right, spread, said):
    stage = small_stage(garments)
    means = {
        "discriminator/real above drawn": tf.constant(right),
        "discriminator/spread of drawn to real": tf.constant(spread),
    }
    assert stage.reason_to_stop(means) is None, "a single step says nothing"
    found = [stage.reason_to_stop(means) for _ in range(10_000)]
    if said is None:
        assert not any(found)
    else:
        first = next(each for each in found if each is not None)
        assert said in first[0] and "Start in another" in first[1]


def test_the_log_says_how_the_players_stand(garments):
    stage = small_stage(garments)
    [batch] = stage.batches(0).take(1)
    found = losses_of(stage, DISCRIMINATOR, batch)
    for name in ("accuracy on real", "accuracy on drawn", "real above drawn"):
        assert ((found[name] >= 0) & (found[name] <= 1)).all()
    assert (found["loss ratio/count"] > 0).all() and found["accuracy on mismatched/count"].max() == 1
    drawn = np.clip(stage.generator(batch["z"], batch["states"], batch["text_mask"])[-1], -1, 1)
    expected = drawn.std(axis=0).mean() / np.std(np.asarray(batch["images"]), axis=0).mean()
    np.testing.assert_allclose(found["spread of drawn to real"], expected, rtol=1e-4)


def test_checkpoints_keep_how_the_players_have_stood(garments):
    stage = small_stage(garments)
    means = {
        "discriminator/real above drawn": tf.constant(1.0),
        "discriminator/spread of drawn to real": tf.constant(0.5),
    }
    for _ in range(100):
        stage.reason_to_stop(means)
    kept = {name: float(variable) for name, variable in stage.state.items()}
    assert kept["right"] == pytest.approx(1 - 0.5 * 0.999**100)
    assert kept["spread"] == pytest.approx(0.5 + 0.5 * 0.999**100)


def test_groups_of_the_deviation_stay_together_and_other_batches_are_refused(garments):
    from sd_tf.errors import InputError

    stage = small_stage(garments, judges=dataclasses.replace(JUDGES, minibatch_groups=4))
    assert stage.unit == 4
    Step(stage, tf.distribute.get_strategy(), "float32")
    with pytest.raises(InputError, match="in groups of 4: give a multiple of 8"):
        Step(stage, tf.distribute.get_strategy(), "float32", accumulate=2)


def test_clips_loss_looks_at_pictures_as_they_are_shown(garments):
    from sd_tf.checkpoints.clip import load_clip
    from sd_tf.checkpoints.tokenizers import load_tokenizer

    clip = load_clip("clip-mini")
    tokenizer = load_tokenizer("clip-mini", clip.text_config.max_position_embeddings)
    found = []
    for augmentation in (None, Augmentation(0.3, 0.6)):
        stage = small_stage(garments, GanLosses(clip=1.0), augmentation)
        stage.clip = clip, tokenizer
        [batch] = stage.batches(0).take(1)
        assert not stage.divisible
        found.append(losses_of(stage, GENERATOR, batch))
    np.testing.assert_allclose(found[1]["clip"], found[0]["clip"], rtol=1e-5)
    assert np.abs(found[1]["adversarial"] - found[0]["adversarial"]).max() > 1e-6


def test_clips_loss_keeps_the_generators_batch_together_and_the_discriminators_is_divided(garments):
    with_clip, without = (small_stage(garments, GanLosses(clip=weight)) for weight in (1.0, 0.0))
    assert with_clip.divides(DISCRIMINATOR) and not with_clip.divides(GENERATOR)
    assert without.divides(DISCRIMINATOR) and without.divides(GENERATOR)


def test_clips_loss_of_token_states_is_the_cross_entropy_of_their_plain_products(garments):
    from sd_tf.checkpoints.clip import load_clip
    from sd_tf.checkpoints.tokenizers import load_tokenizer

    clip = load_clip("clip-mini")
    stage = small_stage(garments, GanLosses(clip=1.0, clip_features="token_states"))
    stage.clip = clip, load_tokenizer("clip-mini", clip.text_config.max_position_embeddings)
    [batch] = stage.batches(0).take(1)
    found = losses_of(stage, GENERATOR, batch)["clip"]
    drawn = cut_off(stage.generator(batch["z"], batch["states"], batch["text_mask"])[-1])
    of_pictures = np.asarray(clip.vision_model(clip.preprocess(drawn)).pooled, np.float64)
    of_texts = np.asarray(clip.text_model(batch["token_ids"]).pooled, np.float64)
    assert np.linalg.norm(of_texts, axis=1).min() > 2, "they are not of length 1"
    logits, groups = of_texts @ of_pictures.T, np.asarray(batch["groups"])
    targets = (groups[:, None] == groups[None]) / (groups[:, None] == groups[None]).sum(1, keepdims=True)
    cross_entropies = [
        -(targets * (each - np.logaddexp.reduce(each, axis=1, keepdims=True))).sum(axis=1)
        for each in (logits, logits.T)
    ]
    np.testing.assert_allclose(found, np.mean(cross_entropies, axis=0), rtol=1e-3)


def test_token_states_need_clips_loss_and_towers_of_one_width(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from sd_tf.errors import InputError
    from sd_tf.gan import recipe
    from sd_tf.gan.new_model import new_model
    from sd_tf.gan.options import GanOptions

    options = GanOptions(clip_features="token_states", unconditional=True)  # which has no loss of CLIP
    with pytest.raises(InputError, match="clip_features needs clip_weight"):
        recipe.recipe_of(new_model(options, "fashion_mnist"), options, tmp_path)
    towers = {"text_config": SimpleNamespace(hidden_size=4), "vision_config": SimpleNamespace(hidden_size=6)}
    monkeypatch.setattr(recipe, "load_clip", lambda name: SimpleNamespace(**towers))
    preset = SimpleNamespace(losses=GanLosses(clip=1.0, clip_features="token_states"))
    planned = SimpleNamespace(recipe=SimpleNamespace(own=GanOptions(), preset=preset))
    with pytest.raises(InputError, match="clip is clip-mini, whose states are 4 and 6 wide"):
        recipe.PlannedGan._clip(planned)
