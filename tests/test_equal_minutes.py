"""The comparison with peers: MinImagen's scheduler with fewer timesteps, the texts that gigagan-pytorch's
losses get, and pictures in the judges' order."""

import importlib.util
import itertools

import numpy as np
import pytest

import sd_tf
from benchmarks import equal_minutes
from benchmarks.peers.drawn_files import add_speed, drawn_file, read_speed
from sd_tf.errors import InputError
from sd_tf.evaluation.protocol import OF_FAMILIES, check_comparable, check_report
from sd_tf.evaluation.scores import CLASS_PROMPTS, TINTED_PROMPTS, Drawn, Score

BUFFERS = (
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
    *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
)


GIGAGAN = ("torch", "einops", "kornia", "accelerate", "ema_pytorch", "beartype", "gigagan_pytorch")


def skip_without(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: see benchmarks/peers/as_installed.py")


@pytest.fixture(scope="module")
def peer():
    skip_without("torch", "minimagen")
    from benchmarks.peers import trained_minimagen

    return trained_minimagen


@pytest.fixture(scope="module")
def scheduler(peer):
    peer.as_installed.minimagen()
    from minimagen.diffusion_model import GaussianDiffusion

    return GaussianDiffusion(timesteps=1000)


CAPTIONS = [f"a {name}" for name in ("bag", "coat", "dress", "shirt")]


class FakeTexts:
    """States that tell captions apart, and a log of which were asked for."""

    width, prompts = 6, {"grey": CAPTIONS[:2], "tinted": CAPTIONS}

    def __init__(self):
        self.asked = []

    def __deepcopy__(self, _):
        return self

    def __call__(self, captions):
        import torch

        self.asked.append(list(captions))
        rows = torch.tensor([CAPTIONS.index(each) + 1.0 for each in captions])
        return rows[:, None, None].expand(-1, 5, 6), torch.arange(5) < 3 + 0 * rows[:, None]


@pytest.fixture(scope="module")
def gigagan():
    skip_without(*GIGAGAN)
    from benchmarks.peers import trained_gigagan

    made, small = trained_gigagan.GigaGAN, {"dim": 8, "depth": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained_gigagan, "TEXT", small)
        patch.setattr(trained_gigagan, "SIZES", {"image_size": 32, "dim_max": 16})
        patch.setattr(trained_gigagan, "STYLE", small | {"dim_text_latent": 8})
        yield made


@pytest.fixture
def few_batches(gigagan, monkeypatch):
    import torch

    from benchmarks.peers import training

    def batches(batch_size, first=0):
        for number in itertools.count(first):
            captions = [CAPTIONS[(number + i) % 4] for i in range(batch_size)]
            yield torch.rand(batch_size, 3, 32, 32), captions

    monkeypatch.setattr(training, "batches", batches)


def test_gigagan_pytorchs_losses_get_own_texts_and_the_matching_loss_those_of_others(gigagan, few_batches):
    texts = FakeTexts()
    next(gigagan(texts).steps(2, 0))
    own, others = CAPTIONS[:2], CAPTIONS[1::-1]
    # The generator, then the discriminator on drawn and real pictures; its matching loss on both; and the
    # generator's step, with its discriminator.
    assert texts.asked == [own] * 3 + [others] * 2 + [own] * 2


def test_gigagan_pytorch_goes_on_where_it_was_stopped_and_draws_by_its_average(
    gigagan, few_batches, tmp_path
):
    from argparse import Namespace

    import torch

    from benchmarks.peers import training

    torch.manual_seed(0)
    whole, stopped = gigagan(FakeTexts()), gigagan(FakeTexts())
    training.train(tmp_path, whole, 1, 2)
    stopped.load_state(whole.state())
    assert stopped.trainer.steps.item() == 2
    for name, value in whole.tensors().items():
        assert torch.equal(value, stopped.tensors()[name]), name
    stopped.draw(tmp_path, Namespace(samples=4, tinted_samples=8, seed=0))
    files = [drawn_file(tmp_path, kind, i, 2) for kind, n in (("grey", 2), ("tinted", 4)) for i in range(n)]
    assert all(np.load(file).shape == (2, 32, 32, 3) for file in files)
    assert read_speed(tmp_path, (4, 8), ())["pictures"] == 12
    with pytest.raises(SystemExit, match="'steps': 1"):
        torch.save({"asked": {"steps": 1}}, tmp_path / "state.pt")
        training.train(tmp_path, whole, 2, 2)


def test_with_all_timesteps_the_respaced_scheduler_is_minimagens_own(peer, scheduler):
    short = peer.respaced(scheduler, np.arange(1000))
    for name in BUFFERS:
        np.testing.assert_allclose(
            getattr(short, name).numpy()[1:], getattr(scheduler, name).numpy()[1:], rtol=2e-3, err_msg=name
        )


def test_a_respaced_step_to_an_earlier_timestep_is_the_posterior_between_the_two(peer, scheduler):
    timesteps = np.array([0, 400, 999])
    short = peer.respaced(scheduler, timesteps)
    signal, before = scheduler.alphas_cumprod.double().numpy()[[999, 400]]
    beta = 1 - signal / before
    # Ho et al. 2020, equations 6 and 7, for the step from 999 to 400.
    expected = np.sqrt(before) * beta / (1 - signal), np.sqrt(1 - beta) * (1 - before) / (1 - signal)
    found = float(short.posterior_mean_coef1[2]), float(short.posterior_mean_coef2[2])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(short.posterior_variance[2]) == pytest.approx((1 - before) / (1 - signal) * beta, rel=1e-5)


def test_pictures_are_judged_in_the_order_of_the_prompts(tmp_path):
    for kind, prompts, first in (("grey", CLASS_PROMPTS, 0), ("tinted", TINTED_PROMPTS, 100)):
        for i in range(len(prompts)):
            picture = np.full((2, 32, 32, 3), first + i, np.uint8)
            np.save(drawn_file(tmp_path, kind, i, 2, 3.0, 50), picture)
    found = equal_minutes.drawn(tmp_path, 20, 160, (3.0, 50))
    np.testing.assert_array_equal(found.grey[:, 0, 0, 0], np.repeat(np.arange(10), 2))
    np.testing.assert_array_equal(found.tinted[:, 0, 0, 0], np.repeat(100 + np.arange(80), 2))
    assert found.rebuilt is None


class FakeJudges:
    """Judges whose one score has the protocol that real ones make."""

    about, skipped = {"device": "none"}, {}

    def __init__(self):
        self.read_by = []

    def scores(self, drawn, drawing, text_encoder=None):
        self.read_by.append(text_encoder)
        return {"frechet_distance": Score(1.0, "lower", {"samples": len(drawn.grey)} | drawing)}

    def draw(self, model, samples, tinted_samples, settings, rebuild=True):
        recommended = model.recommended.to_json()
        assert settings.keys() == recommended.keys() & set(equal_minutes.COMPARED) | {"seed"}
        assert all(settings[name] == recommended[name] for name in settings.keys() - {"seed"})
        return Drawn(*(np.zeros((n, 32, 32, 3), np.uint8) for n in (samples, tinted_samples)), None)


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan")
    sd_tf.GigaGAN.from_preset("fashion-mnist-gan", "garments").save(folder)
    return str(folder)


@pytest.mark.parametrize(
    "values", [("ddpm", 50, 3.0, [0.0, 1.0]), ()], ids=["a peer in steps", "a peer in one pass"]
)
def test_models_of_ours_stand_beside_a_peer_by_their_own_settings_and_of_as_many_pictures(values, gan):
    judges, encoder = FakeJudges(), object()
    theirs = dict(zip(equal_minutes.COMPARED, values, strict=False)) | {"seed": 0}
    about = {"model": "peer", "label": "peer", "weights": "0"}
    pictures = Drawn(np.zeros((20, 32, 32, 3), np.uint8), np.zeros((160, 32, 32, 3), np.uint8), None)
    reports = [equal_minutes.report_of(judges, pictures, theirs, {}, encoder, {}, **about)]
    for name, samples in (("fashion-mnist", 20), (gan, 20), ("fashion-mnist", 40)):
        report, _ = equal_minutes.ours(name, judges, samples, 160)
        check_report(report)
        assert report["scores"]["pictures_per_second"]["details"]["pictures"] == samples + 160
        reports.append(report)
    assert judges.read_by[0] is encoder and None not in judges.read_by
    assert reports[1]["settings"]["sampler"] != "ddpm"
    assert reports[2]["settings"] == {"truncation": 1.0, "seed": 0}
    varied = [*equal_minutes.COMPARED, *OF_FAMILIES]
    check_comparable(reports[:3], varied=varied)
    with pytest.raises(InputError, match="samples is 20 and 40"):
        check_comparable(reports, varied=varied)


def test_speed_counts_all_pictures_of_a_drawing_that_was_stopped(tmp_path):
    assert read_speed(tmp_path, (20, 160), (3.0, 50)) is None
    for _ in range(2):
        add_speed(tmp_path, (20, 160), (3.0, 50), 2, 4.0)
    found = read_speed(tmp_path, (20, 160), (3.0, 50))
    assert equal_minutes.speed_score(**found)["pictures_per_second"].value == 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sampling-steps", "50"], "--sampling-steps is 50, and gigagan-pytorch draws in one pass"),
        (["--batch-size", "1"], "--batch-size is 1: give 2 or more"),
    ],
)
def test_flags_that_a_peer_does_not_take_are_refused(words, said, tmp_path, monkeypatch, capsys):
    given = ["--peer", "gigagan-pytorch", "--output", str(tmp_path), "--steps", "1", *words]
    monkeypatch.setattr("sys.argv", ["equal_minutes", *given])
    with pytest.raises(SystemExit):
        equal_minutes.main()
    assert said in capsys.readouterr().err
