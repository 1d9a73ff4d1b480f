import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import sd_tf
from sd_tf.data.pipeline import Examples
from sd_tf.diffusion.losses import min_snr_weights
from sd_tf.diffusion.schedules import NoiseSchedule, ScheduleConfig
from sd_tf.images import to_unit
from sd_tf.latent.config import AutoencoderConfig
from sd_tf.latent.model import LatentDiffusion
from sd_tf.latent.stages import AutoencoderStage, ClipStage, DiffusionStage
from sd_tf.latent.unet import UNet
from sd_tf.seeding import normals
from sd_tf.text.clip import CLIPModel
from sd_tf.text.config import CLIPTextConfig, CLIPVisionConfig
from sd_tf.text.tokenizer import Tokenizer
from sd_tf.training import strategy as strategies
from sd_tf.training.loop import Budget, Trainer
from sd_tf.training.options import StageConfig

CONFIG = StageConfig(batch_size=8, learning_rate=1e-2, warmup_steps=1)
CAPTIONS = ("a red dress", "a blue bag", "a dress", "a bag")


class Pictures:
    """Sixteen pictures of 16 x 16 in smooth random colours, four to a caption."""

    image_size = 16

    def __len__(self):
        return 16

    def examples(self, indices, epoch):
        coarse = np.random.default_rng(epoch).integers(0, 256, (16, 4, 4, 3))
        images = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)[indices]
        groups = np.asarray(indices, np.int32) % 4
        return Examples(images, [CAPTIONS[group] for group in groups], groups)


def clip_stage():
    tokenizer = Tokenizer.learn(CAPTIONS, 530, max_length=10)
    widths = {"hidden_size": 8, "intermediate_size": 16, "projection_dim": 8, "num_hidden_layers": 1}
    text = CLIPTextConfig(
        **widths,
        vocab_size=tokenizer.vocab_size,
        num_attention_heads=2,
        max_position_embeddings=10,
        eos_token_id=tokenizer.eos_token_id,
    )
    clip = CLIPModel(text, CLIPVisionConfig(**widths, num_attention_heads=2, image_size=16, patch_size=8))
    clip.build()
    return ClipStage(CONFIG, clip, tokenizer, Pictures(), seed=0)


def autoencoder_stage(tiny_model):
    return AutoencoderStage(CONFIG, tiny_model.autoencoder, Pictures(), seed=0)


def diffusion_stage(tiny_model, caption_dropout=0.1, examples=16, **options):
    rng = np.random.default_rng(0)
    cache = SimpleNamespace(
        mean=rng.normal(size=(examples, 8, 8, 4)).astype(np.float16),
        std=rng.uniform(0.5, 1.0, (examples, 8, 8, 4)).astype(np.float16),
        caption=np.arange(examples, dtype=np.int32) % 4,
        contexts=tiny_model.encode_prompts([*CAPTIONS, ""]).astype(np.float16),
        seconds=0.0,
    )

    class Cache(SimpleNamespace):
        def __len__(self):
            return examples

    return DiffusionStage(CONFIG, tiny_model, Cache(**vars(cache)), caption_dropout, seed=0, **options)


@pytest.fixture(params=["clip", "autoencoder", "diffusion"])
def stage(request, tiny_model):
    if request.param == "clip":
        return clip_stage()
    return {"autoencoder": autoencoder_stage, "diffusion": diffusion_stage}[request.param](tiny_model)


def batches(stage, count, first_step=0):
    return list(itertools.islice(stage.batches(first_step).as_numpy_iterator(), count))


def losses(stage, batch):
    return {name: value.numpy() for name, value in stage.loss(batch).items()}


def test_a_batch_is_a_pure_function_of_its_number(stage):
    whole, resumed = batches(stage, 4), batches(stage, 2, first_step=2)
    for expected, found in zip(whole[2:], resumed, strict=True):
        assert expected.keys() == found.keys()
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key])
    assert any((whole[0][key] != whole[2][key]).any() for key in whole[0])


def test_the_loss_is_a_pure_function_of_the_batch(stage):
    (batch,) = batches(stage, 1)
    first, again = losses(stage, batch), losses(stage, batch)
    order = np.array([3, 1, 7, 0, 5, 2, 6, 4])
    shuffled = losses(stage, {key: value[order] for key, value in batch.items()})
    for name, value in first.items():
        assert value.shape == (CONFIG.batch_size,) and value.dtype == np.float32
        np.testing.assert_array_equal(again[name], value)
        np.testing.assert_allclose(shuffled[name], value[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [autoencoder_stage, diffusion_stage])
def test_an_example_has_the_same_loss_in_any_part_of_the_batch(make, tiny_model):
    stage = make(tiny_model)
    (batch,) = batches(stage, 1)
    whole = losses(stage, batch)
    halves = [{key: value[rows] for key, value in batch.items()} for rows in (slice(0, 4), slice(4, 8))]
    parts = [losses(stage, half) for half in halves]
    for name, value in whole.items():
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, value, rtol=1e-4, atol=1e-5)


# -- clip ---------------------------------------------------------------------------------------


def test_the_clip_loss_is_the_papers_where_all_captions_differ():
    torch = pytest.importorskip("torch")
    stage = clip_stage()
    (batch,) = batches(stage, 1)
    batch["groups"] = np.arange(8)
    clip = stage.network
    text = clip.text_features(batch["token_ids"]).numpy()
    image = clip.image_features(clip.preprocess(batch["images"])).numpy()
    logits = torch.from_numpy(np.exp(clip.logit_scale.numpy()) * text @ image.T)
    pairs, entropy = torch.arange(8), torch.nn.functional.cross_entropy
    expected = (entropy(logits, pairs) + entropy(logits.T, pairs)) / 2
    found = losses(stage, batch)
    np.testing.assert_allclose(found["loss"].mean(), expected.item(), rtol=1e-5)
    np.testing.assert_array_equal(found["matched"], (text @ image.T).argmax(axis=0) == np.arange(8))


def test_a_match_with_another_example_of_the_same_meaning_counts():
    stage = clip_stage()
    (batch,) = batches(stage, 1)
    batch["groups"] = np.zeros(8, np.int32)
    assert losses(stage, batch)["matched"].mean() == 1.0


def test_two_replicas_contrast_the_whole_batch(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(sd_tf.__file__).parent.parent)}
    subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, check=True, timeout=300)
    one = train_clip("none", tmp_path / "one")
    with np.load(tmp_path / "mirrored.npz") as mirrored:
        for i, variable in enumerate(one.network.trainable_variables):
            if "k_proj/bias" in variable.path:  # its gradient is rounding alone, which Adam enlarges
                continue
            np.testing.assert_allclose(mirrored[f"arr_{i}"], variable.numpy(), atol=1e-4)


# -- autoencoder --------------------------------------------------------------------------------


def test_the_kl_is_the_closed_form(tiny_model):
    torch = pytest.importorskip("torch")
    stage = autoencoder_stage(tiny_model)
    (batch,) = batches(stage, 1)
    moments = tiny_model.autoencoder.moments(batch["images"])
    mean, log_variance = (torch.from_numpy(np.array(part)) for part in moments)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(posterior, standard).mean(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(losses(stage, batch)["kl"], expected, rtol=1e-4)


def test_the_error_is_that_of_a_sample_from_the_posterior(tiny_model):
    stage, autoencoder = autoencoder_stage(tiny_model), tiny_model.autoencoder
    (batch,) = batches(stage, 1)
    mean, std = (np.asarray(part) for part in autoencoder.encode(batch["images"]))
    rebuilt = np.asarray(autoencoder.decode(mean + std * batch["noise"]))
    error = np.abs(rebuilt - batch["images"]).mean(axis=(1, 2, 3))
    found = losses(stage, batch)
    np.testing.assert_allclose(found["error"], error, rtol=1e-4)
    np.testing.assert_allclose(found["loss"], error + stage.KL_WEIGHT * found["kl"], rtol=1e-4)


def test_calibration_gives_latents_of_unit_deviation(tiny_model, monkeypatch):
    autoencoder = tiny_model.autoencoder
    monkeypatch.setattr(autoencoder, "config", autoencoder.config)  # put back afterwards
    before = np.asarray(autoencoder(to_unit(Pictures().examples(np.arange(16), 0).images)))
    stage = autoencoder_stage(tiny_model)
    stage.calibrate()
    images = to_unit(Pictures().examples(np.arange(16), 0).images)
    mean, std = (np.asarray(part) for part in autoencoder.encode(images))
    draws = [mean + std * normals((9, i), np.arange(16), mean.shape[1:]) for i in range(100)]
    assert np.std(draws) == pytest.approx(1.0, rel=0.02)
    np.testing.assert_allclose(np.asarray(autoencoder(images)), before, atol=1e-4)


class TwoHalves:
    """Pictures in the order of class folders: a thousand black ones, then a thousand of noise."""

    image_size = 16

    def __init__(self):
        rng = np.random.default_rng(0)
        self.images = np.zeros((2000, 16, 16, 3), np.uint8)
        self.images[1000:] = rng.integers(0, 256, self.images[1000:].shape)
        self.asked_for = []

    def __len__(self):
        return len(self.images)

    def examples(self, indices, epoch):
        self.asked_for.append(len(indices))
        return Examples(self.images[indices], [""] * len(indices), np.zeros(len(indices), np.int32))


def test_calibration_looks_at_pictures_of_all_kinds(tiny_model, monkeypatch):
    autoencoder, dataset = tiny_model.autoencoder, TwoHalves()
    monkeypatch.setattr(autoencoder, "config", autoencoder.config)  # put back afterwards
    stage = AutoencoderStage(CONFIG, autoencoder, dataset, 0)
    stage.calibrate(num_images=400)
    mean, log_variance = (
        np.asarray(each, np.float64) for each in autoencoder.moments(to_unit(dataset.images))
    )
    deviation = np.sqrt(np.mean(np.exp(log_variance)) + np.var(mean))
    assert 1 / autoencoder.config.scaling_factor == pytest.approx(deviation, rel=0.02)
    of_one_half = np.sqrt(np.mean(np.exp(log_variance[:1000])) + np.var(mean[:1000]))
    assert abs(of_one_half / deviation - 1) > 0.05  # what the first pictures alone would say


@pytest.mark.parametrize(("image_size", "at_once"), [(16, 1024), (128, 16), (1024, 1)])
def test_calibration_encodes_as_many_pictures_at_once_as_their_size_allows(monkeypatch, image_size, at_once):
    """Pictures take the memory of 256 of 32 x 32."""
    dataset = TwoHalves()
    dataset.image_size = image_size  # of which it says so
    network = SimpleNamespace(config=AutoencoderConfig(), moments=lambda images: (images, images))
    monkeypatch.setattr("sd_tf.latent.stages.compiled", lambda function: function)
    stage = AutoencoderStage(CONFIG, network, dataset, 0)
    stage.calibrate(num_images=2000)
    assert max(dataset.asked_for) == at_once and sum(dataset.asked_for) == 2000


# -- diffusion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_captions_are_dropped_at_the_rate_asked_for(tiny_model, rate):
    stage = diffusion_stage(tiny_model, rate, examples=400)
    dropped = np.concatenate([batch["dropped"] for batch in batches(stage, 400)])  # 3,200 draws
    assert abs(dropped.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / len(dropped))


def test_a_dropped_caption_is_the_empty_one_and_no_other_changes(tiny_model):
    stage = diffusion_stage(tiny_model)
    (batch,) = batches(stage, 1)
    dropped = np.arange(8) < 3
    empty = np.asarray(tiny_model.encode_prompts([""]).astype(np.float16), np.float32)
    none_dropped = batch | {"dropped": np.zeros(8, bool)}
    written_out = none_dropped | {"context": np.where(dropped[:, None, None], empty, batch["context"])}
    found = losses(stage, batch | {"dropped": dropped})["loss"]
    np.testing.assert_allclose(found, losses(stage, written_out)["loss"], rtol=1e-5)
    with_captions = losses(stage, none_dropped)["loss"]
    np.testing.assert_allclose(found[3:], with_captions[3:], rtol=1e-5)
    assert (found[:3] != with_captions[:3]).all()


def test_the_loss_is_that_of_diffusers_schedule(tiny_model):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    stage = diffusion_stage(tiny_model, caption_dropout=0.0)
    (batch,) = batches(stage, 1)
    reference = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    latents, noise, t = (torch.from_numpy(batch[key].copy()) for key in ("latents", "noise", "timesteps"))
    noisy = reference.add_noise(latents, noise, t).numpy()
    output = np.asarray(tiny_model.unet(noisy, batch["timesteps"], batch["context"]))
    velocity = reference.get_velocity(latents, noise, t).numpy()
    expected = np.square(output - velocity).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(losses(stage, batch)["loss"], expected, rtol=1e-3)


def test_each_epoch_draws_fresh_latents_from_the_cached_posterior(tiny_model):
    stage = diffusion_stage(tiny_model)
    rows = [batch["latents"] for batch in batches(stage, 400)]  # 200 epochs of 16
    latents = np.concatenate(rows)
    mean, std = (np.asarray(part, np.float32) for part in (stage.cache.mean, stage.cache.std))
    assert len(np.unique(latents[:, 0, 0, 0])) == len(latents)
    expected = np.sqrt(mean.var() + (std**2).mean())
    assert latents.std() == pytest.approx(expected, rel=0.01)


def test_timesteps_are_uniform_and_unlike_for_each_example_and_epoch(tiny_model):
    timesteps = np.concatenate([batch["timesteps"] for batch in batches(diffusion_stage(tiny_model), 400)])
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    counts, _ = np.histogram(timesteps, bins=10, range=(0, 1000))
    expected = len(timesteps) / 10
    assert (np.square(counts - expected) / expected).sum() < 27.9  # chi-squared of 9, p = 0.001


@pytest.mark.parametrize("logit_mean", [0.0, -0.5])
def test_timesteps_by_logits_are_distributed_as_in_diffusers(tiny_model, logit_mean):
    torch = pytest.importorskip("torch")
    from diffusers.training_utils import compute_density_for_timestep_sampling

    stage = diffusion_stage(tiny_model, timestep_sampling="logit_normal", logit_mean=logit_mean)
    drawn = batches(stage, 800)
    timesteps = np.concatenate([batch["timesteps"] for batch in drawn])
    generator = torch.Generator().manual_seed(0)
    reference = compute_density_for_timestep_sampling(
        "logit_normal", 100_000, logit_mean, 1.0, generator=generator
    )
    shares = np.histogram(1000 * reference.numpy(), bins=10, range=(0, 1000))[0] / 100_000
    counts, expected = np.histogram(timesteps, bins=10, range=(0, 1000))[0], shares * len(timesteps)
    assert (np.square(counts - expected) / expected).sum() < 27.9  # chi-squared of 9, p = 0.001
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    for uniform, ours in zip(batches(diffusion_stage(tiny_model), 3), drawn[:3], strict=True):
        for name in set(ours) - {"timesteps"}:
            np.testing.assert_array_equal(ours[name], uniform[name])


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("mixed_float16", 3e-3)])
def test_a_step_that_computes_activations_again_is_the_same(
    tiny_model, tmp_path, monkeypatch, precision, tolerance
):
    monkeypatch.setattr("sd_tf.training.workers.batch_slices", lambda *examples: 2)
    others = {
        name: getattr(tiny_model, name) for name in ("autoencoder", "text_encoder", "tokenizer", "schedule")
    }

    def step(remat):
        keras.utils.set_random_seed(0)
        unet = UNet(tiny_model.unet.config, dtype=precision)
        unet.build()
        stage = diffusion_stage(LatentDiffusion(unet=unet, **others))
        strategy, folder = strategies.make("none", None), tmp_path / str(remat)
        trainer = Trainer(stage, strategy, Budget(None, 1), folder, precision, 1e9, remat=remat)
        batch = next(iter(stage.batches(0)))
        graph = trainer.step.__call__.get_concrete_function(batch).graph.as_graph_def()
        nodes = [node for function in graph.library.function for node in function.node_def]
        convolutions = [node.op for node in (*graph.node, *nodes)].count("Conv2D")
        loss = trainer.step(batch)["loss"].numpy()
        buckets = trainer.step.learners["diffusion"].optimizer.buckets
        return convolutions, [loss, *(bucket.first.numpy() for bucket in buckets)]

    (of_again, again), (of_once, once) = step(True), step(False)
    assert of_again > 1.7 * of_once  # all but those at both ends, and of changes of resolution
    for ours, theirs in zip(again, once, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_offset_noise_is_one_number_for_each_channel_of_an_example(tiny_model):
    plain = batches(diffusion_stage(tiny_model), 200)  # 1,600 examples in 100 epochs
    shifted = batches(diffusion_stage(tiny_model, offset_noise=0.1), 200)
    offsets = np.concatenate([b["noise"] - a["noise"] for a, b in zip(plain, shifted, strict=True)])
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:, :1, :1], offsets.shape), atol=1e-6)
    offsets = offsets[:, 0, 0].ravel()  # 6,400 draws: two standard errors of their deviation are 2 %
    assert offsets.std() == pytest.approx(0.1, rel=0.04) and abs(offsets.mean()) < 0.005
    assert len(np.unique(offsets.round(5))) > 0.9 * len(offsets)
    for name in plain[0]:
        if name != "noise":
            np.testing.assert_array_equal(plain[3][name], shifted[3][name])
    resumed = batches(diffusion_stage(tiny_model, offset_noise=0.1), 1, first_step=3)
    np.testing.assert_array_equal(resumed[0]["noise"], shifted[3]["noise"])


def test_min_snr_weighs_each_example_by_its_timestep(tiny_model):
    (batch,) = batches(diffusion_stage(tiny_model), 1)
    plain = losses(diffusion_stage(tiny_model), batch)["loss"]
    weighted = losses(diffusion_stage(tiny_model, min_snr_gamma=5.0), batch)["loss"]
    weights = min_snr_weights(tiny_model.schedule, 5.0)[batch["timesteps"]]
    np.testing.assert_allclose(weighted, weights * plain, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_timesteps", "bins"),
    [
        (1000, [(100 * i, 100 * i + 99) for i in range(10)]),
        (15, [(0, 0), (1, 2), (3, 3), (4, 5), (6, 6), (7, 8), (9, 9), (10, 11), (12, 12), (13, 14)]),
        (3, [(0, 0), (1, 1), (2, 2)]),
    ],
)
def test_each_example_counts_in_the_bin_of_its_timestep_alone(tiny_model, monkeypatch, num_timesteps, bins):
    config = ScheduleConfig(prediction_type="v_prediction", num_train_timesteps=num_timesteps)
    monkeypatch.setattr(tiny_model, "schedule", NoiseSchedule(config))
    stage = diffusion_stage(tiny_model)
    (batch,) = batches(stage, 1)
    batch["timesteps"] = np.array([0, 1, 2, 2, 0, 1, num_timesteps - 1, num_timesteps - 2], np.int32)
    found = losses(stage, batch)
    loss = found.pop("loss")
    for first, last in bins:
        inside = (batch["timesteps"] >= first) & (batch["timesteps"] <= last)
        np.testing.assert_array_equal(found.pop(f"loss of timesteps {first}-{last}/count"), inside)
        np.testing.assert_array_equal(found.pop(f"loss of timesteps {first}-{last}/sum"), loss * inside)
    assert not found


def test_a_loss_that_is_not_finite_stays_in_its_bin(tiny_model):
    stage = diffusion_stage(tiny_model)
    (batch,) = batches(stage, 1)
    batch["timesteps"] = np.array([50, 150, 250, 350, 450, 550, 650, 750], np.int32)
    spoil = np.where(np.arange(8) == 0, np.nan, 1).astype("float32")
    batch["latents"] = batch["latents"] * spoil[:, None, None, None]
    found = losses(stage, batch)
    spoilt = [name for name, value in found.items() if not np.isfinite(value).all()]
    assert sorted(spoilt) == ["loss", "loss of timesteps 0-99/sum"]


# -- what a run shows ---------------------------------------------------------------------------


def test_previews_are_pictures_in_rows(tiny_model):
    assert clip_stage().preview() is None
    images, columns = autoencoder_stage(tiny_model).preview()
    assert images.shape == (24, 16, 16, 3) and images.dtype == np.uint8 and columns == 12
    np.testing.assert_array_equal(images[:12], Pictures().examples(np.arange(12), 0).images)
    prompts = ("a red dress", "a blue bag", "a (1:20)")  # of a caption; as a prompt, a weight that is refused
    images, columns = diffusion_stage(tiny_model, preview_prompts=prompts).preview()
    assert images.shape == (6, 16, 16, 3) and images.dtype == np.uint8 and columns == 3
    expected = tiny_model.generate(r"a \(1:20\)", 2, steps=20, engine="tensorflow", progress=False)
    assert np.abs(images[4:].astype(int) - expected).max() <= 1
    assert diffusion_stage(tiny_model).preview() is None


def train_clip(strategy, folder):
    strategy = strategies.make(strategy, None)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        stage = clip_stage()
    Trainer(stage, strategy, Budget(None, 3), folder, "float32", 1e9).fit()
    return stage


if __name__ == "__main__":  # in a process of its own: virtual devices come before all else
    folder = Path(sys.argv[1])
    trained = train_clip("mirrored", folder / "two")
    assert len(tf.config.list_logical_devices("CPU")) == 2
    np.savez(folder / "mirrored.npz", *[v.numpy() for v in trained.network.trainable_variables])
