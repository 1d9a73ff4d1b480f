"""The comparison with MinImagen: its scheduler with fewer timesteps, and pictures in the judges' order."""

import numpy as np
import pytest

from sd_tf.errors import InputError
from sd_tf.evaluation.protocol import OF_FAMILIES, check_comparable, check_report
from sd_tf.evaluation.scores import CLASS_PROMPTS, TINTED_PROMPTS, Drawn, Score

pytest.importorskip("minimagen")
from benchmarks import equal_minutes  # noqa: E402
from benchmarks.peers import trained_minimagen as peer  # noqa: E402

BUFFERS = (
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
    *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
)


@pytest.fixture(scope="module")
def scheduler():
    peer.as_installed.minimagen()
    from minimagen.diffusion_model import GaussianDiffusion

    return GaussianDiffusion(timesteps=1000)


def test_with_all_timesteps_the_respaced_scheduler_is_minimagens_own(scheduler):
    short = peer.respaced(scheduler, np.arange(1000))
    for name in BUFFERS:
        np.testing.assert_allclose(
            getattr(short, name).numpy()[1:], getattr(scheduler, name).numpy()[1:], rtol=2e-3, err_msg=name
        )


def test_a_respaced_step_to_an_earlier_timestep_is_the_posterior_between_the_two(scheduler):
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
            np.save(peer.drawn_file(tmp_path, kind, i, 2, 3.0, 50), picture)
    found = equal_minutes.drawn(tmp_path, 20, 160, 3.0, 50)
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

    def draw(self, model, samples, tinted_samples, settings):
        assert settings["sampler"] == model.recommended.sampler
        return Drawn(*(np.zeros((n, 32, 32, 3), np.uint8) for n in (samples, tinted_samples)), None)


def test_a_model_of_ours_stands_beside_minimagen_by_its_own_settings_and_of_as_many_pictures():
    judges, encoder = FakeJudges(), object()
    theirs = dict(zip(equal_minutes.COMPARED, ("ddpm", 50, 3.0, [0.0, 1.0]), strict=True)) | {"seed": 0}
    about = {"model": "minimagen", "label": "minimagen", "weights": "0"}
    pictures = Drawn(np.zeros((20, 32, 32, 3), np.uint8), np.zeros((160, 32, 32, 3), np.uint8), None)
    reports = [equal_minutes.report_of(judges, pictures, theirs, {}, encoder, **about)]
    for samples in (20, 40):
        report, _ = equal_minutes.ours("fashion-mnist", judges, samples, 160)
        check_report(report)
        reports.append(report)
    assert judges.read_by[0] is encoder and None not in judges.read_by
    assert reports[1]["settings"]["sampler"] != "ddpm"
    varied = [*equal_minutes.COMPARED, *OF_FAMILIES]
    check_comparable(reports[:2], varied=varied)
    with pytest.raises(InputError, match="samples is 20 and 40"):
        check_comparable(reports, varied=varied)
