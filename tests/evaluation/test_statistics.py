import numpy as np
import pytest

from sd_tf.evaluation import statistics


@pytest.fixture(scope="module")
def sets():
    """Two sets of features as a network's are: correlated, none below zero, unlike one another."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(24, 24)) / 5
    first, second = (np.maximum(generator.normal(size=(n, 24)) @ mixing, 0) for n in (1500, 1200))
    return first.astype("float32"), (1.2 * second + 0.1).astype("float32")


def of_torchmetrics(metric, real, drawn):
    """A torchmetrics score of features: its network is one that changes nothing."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchmetrics")

    class Features(torch.nn.Module):
        num_features = real.shape[1]

        def forward(self, x):
            return x

    from torchmetrics.image import fid, kid

    kinds = {"fid": fid.FrechetInceptionDistance, "kid": kid.KernelInceptionDistance}
    if metric == "fid":
        score = kinds[metric](Features(), input_img_size=(real.shape[1],)).set_dtype(torch.float64)
    else:
        score = kinds[metric](Features(), subsets=50, subset_size=1000)
    score.update(torch.tensor(real, dtype=torch.float64), real=True)
    score.update(torch.tensor(drawn, dtype=torch.float64), real=False)
    return score.compute()


def test_the_frechet_distance_is_torchmetrics(sets):
    drawn, real = sets
    expected = float(of_torchmetrics("fid", real, drawn))
    assert statistics.frechet_distance(drawn, real) == pytest.approx(expected, rel=1e-3)


def test_the_kernel_distance_is_torchmetrics(sets):
    """Both mean random subsets: of all rows at once they would be the same."""
    drawn, real = (each[:1000] for each in sets)
    mean, _ = of_torchmetrics("kid", real, drawn)
    found = statistics.kernel_distance(drawn, real, subsets=1, subset_size=1000)
    assert found == pytest.approx(float(mean), rel=1e-3)


def test_the_kernel_distance_of_random_subsets_is_torchmetrics(sets):
    """Each draws its own, so the two agree as far as the mean of subsets does."""
    drawn, real = sets
    mean, deviation = (float(each) for each in of_torchmetrics("kid", real, drawn))
    found = statistics.kernel_distance(drawn, real, subsets=50)
    assert found == pytest.approx(mean, abs=4 * deviation / 50**0.5) and mean > 10 * deviation / 50**0.5


def test_the_frechet_distance_of_fewer_rows_than_features_is_torchmetrics(sets):
    """As of Inception's 2,048: the covariances have no full rank."""
    drawn, real = (each[:16] for each in sets)
    expected = float(of_torchmetrics("fid", real, drawn))
    assert statistics.frechet_distance(drawn, real) == pytest.approx(expected, rel=1e-3)


def test_precision_and_recall_are_those_of_prdc(sets):
    prdc = pytest.importorskip("prdc")
    drawn, real = (each[:700] for each in sets)
    expected = prdc.compute_prdc(real_features=real, fake_features=drawn, nearest_k=3)
    inside, covered = statistics.Manifold(real).holds(drawn), statistics.Manifold(drawn).holds(real)
    assert 0.02 < expected["precision"] < 0.98 and 0.02 < expected["recall"] < 0.98
    assert inside.mean() == pytest.approx(expected["precision"], abs=2e-3)
    assert covered.mean() == pytest.approx(expected["recall"], abs=2e-3)


def test_normal_distributions_have_the_distance_of_the_closed_form():
    """|m|^2 + (s - 1)^2 in each dimension, where covariances are diagonal."""
    generator = np.random.default_rng(1)
    standard = generator.normal(size=(200_000, 4))
    scales, shift = np.array([0.5, 1.0, 2.0, 3.0]), np.array([1.0, 0.0, -1.0, 0.5])
    expected = np.square(shift).sum() + np.square(scales - 1.0).sum()
    found = statistics.frechet_distance(generator.normal(size=standard.shape) * scales + shift, standard)
    assert found == pytest.approx(expected, rel=0.02)


def test_a_set_has_no_distance_to_itself_and_lies_in_its_own_manifold(sets):
    features, _ = sets
    assert statistics.frechet_distance(features, features) == pytest.approx(0.0, abs=1e-8)
    assert statistics.Manifold(features[:500]).holds(features[:500]).all()


def test_blocks_of_a_distance_matrix_make_no_difference(sets, monkeypatch):
    drawn, real = sets

    def found():
        return statistics.Manifold(real).holds(drawn), *statistics.nearest(drawn, real)

    whole = found()
    monkeypatch.setattr(statistics, "BLOCK", 100)
    for one, other in zip(whole, found(), strict=True):
        np.testing.assert_allclose(one, other)


def test_the_nearest_reference_is_found(sets):
    features, references = sets
    distances, places = statistics.nearest(features[:50], references)
    every = np.linalg.norm(features[:50, None].astype(float) - references[None], axis=2)
    np.testing.assert_allclose(distances, every.min(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(places, every.argmin(axis=1))


def test_an_interval_holds_the_true_value_as_often_as_it_says():
    """Of a proportion of 0.7 among 300, by 200 experiments; 95 % of them, give or take 4."""
    generator = np.random.default_rng(2)
    held = [
        estimate.low <= 0.7 <= estimate.high
        for estimate in (statistics.mean_estimate(generator.random(300) < 0.7, seed=i) for i in range(200))
    ]
    assert 0.91 <= np.mean(held) <= 0.99


@pytest.mark.parametrize(("right", "of"), [(0, 20), (7, 20), (480, 500), (500, 500)])
def test_the_interval_of_a_share_is_wilsons(right, of):
    scipy_stats = pytest.importorskip("scipy.stats")
    expected = scipy_stats.binomtest(right, of).proportion_ci(0.95, "wilson")
    found = statistics.share_estimate(np.arange(of) < right)
    assert found.value == right / of
    np.testing.assert_allclose(found[1:], [expected.low, expected.high], atol=1e-5)


def test_the_interval_of_a_kernel_distance_holds_the_true_value_as_often_as_it_says():
    """Of features that are new in each of 100 experiments; the truth is of 8,000."""
    generator = np.random.default_rng(3)

    def drawn(count):
        return generator.normal(size=(count, 8)), 1.1 * generator.normal(size=(count, 8)) + 0.3

    truth = statistics.kernel_distance(*drawn(8000), subsets=1, subset_size=8000)
    estimates = [statistics.kernel_estimate(*drawn(150), subsets=20, subset_size=150) for _ in range(100)]
    assert 0.88 <= np.mean([each.low <= truth <= each.high for each in estimates]) <= 1.0
    widths = [(each.high - each.low) / 2 / 1.96 for each in estimates]
    assert np.mean(widths) == pytest.approx(np.std([each.value for each in estimates]), rel=0.25)


def test_the_interval_of_a_frechet_distance_is_about_it_and_not_above(sets):
    drawn, real = sets
    value, low, high = statistics.frechet_estimate(drawn, real)
    assert value == statistics.frechet_distance(drawn, real)
    assert low < value < high and value - low == pytest.approx(high - value)
