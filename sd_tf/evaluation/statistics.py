"""Distances between sets of feature vectors, and how far to trust them. Arithmetic alone, no network.

Features are (n, width) of any float type; all arithmetic is in float64.
"""

from typing import NamedTuple

import numpy as np

CONFIDENCE = 1.96  # standard deviations, 95 % of a normal distribution
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
BLOCK = 2048  # rows of a distance matrix at a time


class Estimate(NamedTuple):
    """A number with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def frechet_distance(features, others) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two normal distributions fitted to the sets.

    The "FID" of Heusel et al. 2017, equation 6, for whatever features it is given; no square root is
    taken of the distance. It is biased upwards for few rows: compare sets of the same size.
    """
    return _frechet(*_moments(features), *_moments(others))


def kernel_distance(features, others, subsets=100, subset_size=1000, seed=0) -> float:
    """The unbiased squared MMD with the kernel (x.y / width + 1)^3, meaned over random subsets.

    The "KID" of Binkowski et al. 2018; `torch_fidelity` and `torchmetrics` have the same defaults.
    """
    return float(np.mean(_kernel_distances(features, others, subsets, subset_size, seed)))


class Manifold:
    """Where a set of features is: balls around each that reach to its k-th nearest neighbour.

    The share of drawn pictures in the real ones' manifold is precision, that of real ones in the drawn
    ones' is recall (Kynkaanniemi et al. 2019, equations 1 to 3).
    """

    def __init__(self, features, neighbours=3):
        self.features, radii = np.asarray(features, np.float64), []
        for start in range(0, len(self.features), BLOCK):
            distances = _squared_distances(self.features[start : start + BLOCK], self.features)
            radii.append(np.partition(distances, neighbours, axis=1)[:, neighbours])  # itself is the 0th
        self.squared_radii = np.concatenate(radii)

    def holds(self, features) -> np.ndarray:
        """Which of the features lie in it, bool (n,)."""
        features, found = np.asarray(features, np.float64), []
        for start in range(0, len(features), BLOCK):
            distances = _squared_distances(features[start : start + BLOCK], self.features)
            found.append((distances <= self.squared_radii).any(axis=1))
        return np.concatenate(found)


def nearest(features, references, itself=False) -> tuple[np.ndarray, np.ndarray]:
    """The Euclidean distance of each row to the nearest of the references, and which one that is.

    `itself` says that row i of the references is row i of the features, and not to be counted.
    """
    found, places = [], []
    references = np.asarray(references, np.float32)
    squares = np.square(references).sum(axis=1)
    for start in range(0, len(features), BLOCK):
        rows = np.asarray(features[start : start + BLOCK], np.float32)
        distances = squares - 2.0 * rows @ references.T
        if itself:
            distances[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
        place = distances.argmin(axis=1)
        found.append(np.linalg.norm(rows.astype("float64") - references[place], axis=1))
        places.append(place)
    return np.concatenate(found), np.concatenate(places)


def quantiles(numbers) -> dict[str, float]:
    """Those of `QUANTILES`, by name."""
    return {f"{q:g}": float(np.quantile(numbers, q)) for q in QUANTILES}


# -- confidence -------------------------------------------------------------------------------------


def mean_estimate(numbers, resamples=200, seed=0) -> Estimate:
    """The mean of numbers."""
    numbers = np.asarray(numbers, np.float64)
    return bootstrap(lambda chosen: float(np.mean(chosen)), (numbers,), resamples, seed)


def share_estimate(hits) -> Estimate:
    """The share of what is true, with the interval of Wilson 1927: that of none or all has a width too."""
    n, share = len(hits), float(np.mean(hits))
    squared = CONFIDENCE**2 / n
    middle = (share + squared / 2) / (1 + squared)
    reach = CONFIDENCE * np.sqrt(share * (1 - share) / n + squared / (4 * n)) / (1 + squared)
    return Estimate(share, float(min(share, middle - reach)), float(max(share, middle + reach)))


def frechet_estimate(features, others, resamples=50, seed=0) -> Estimate:
    """`frechet_distance` with its interval."""
    return bootstrap(frechet_distance, (features, others), resamples, seed)


def kernel_estimate(features, others, subsets=100, subset_size=1000, seed=0) -> Estimate:
    """`kernel_distance` with its interval.

    Its variance is that of the U-statistic over all rows, to the first order (Serfling 1980, section
    5.5.1, as Sutherland et al. 2017 have it for the MMD), and that of the mean over random subsets.
    """
    found = _kernel_distances(features, others, subsets, subset_size, seed)
    chance = np.var(found, ddof=1) / subsets if subsets > 1 else 0.0
    variance = _kernel_variance(*(np.asarray(each, np.float64) for each in (features, others)))
    return _around(float(np.mean(found)), float(np.sqrt(variance + chance)))


def bootstrap(statistic, sets, resamples, seed=0) -> Estimate:
    """A statistic of some sets, with an interval from sets drawn out of them with replacement.

    The interval is the value and 1.96 standard deviations of the resampled values on either side, not
    their percentiles: those of a Frechet distance lie above it, as a resampled set has fewer different
    members (Efron and Tibshirani 1993, chapter 6).
    """
    generator = np.random.default_rng(seed)
    sets = [np.asarray(each) for each in sets]
    found = [
        statistic(*(each[generator.integers(0, len(each), len(each))] for each in sets))
        for _ in range(resamples)
    ]
    return _around(statistic(*sets), float(np.std(found, ddof=1)))


def _around(value, deviation):
    return Estimate(value, value - CONFIDENCE * deviation, value + CONFIDENCE * deviation)


# -- the parts of the formulas ----------------------------------------------------------------------


def _moments(features):
    features = np.asarray(features, np.float64)
    return features.mean(axis=0), np.cov(features, rowvar=False)


def _frechet(mean, covariance, other_mean, other_covariance):
    # (S1 S2)^(1/2) has the trace of (S1^(1/2) S2 S1^(1/2))^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    values = np.linalg.eigvalsh(root @ other_covariance @ root)
    traces = np.trace(covariance) + np.trace(other_covariance) - 2.0 * np.sqrt(np.maximum(values, 0.0)).sum()
    return float(np.square(mean - other_mean).sum() + traces)


def _kernel_distances(features, others, subsets, subset_size, seed):
    generator = np.random.default_rng(seed)
    features, others = (np.asarray(each, np.float64) for each in (features, others))
    size = min(subset_size, len(features), len(others))
    found = []
    for _ in range(subsets):
        x = features[generator.choice(len(features), size, replace=False)]
        y = others[generator.choice(len(others), size, replace=False)]
        of_x, of_y, between = (_kernel(a, b) for a, b in ((x, x), (y, y), (x, y)))
        within = (of_x.sum() - np.trace(of_x) + of_y.sum() - np.trace(of_y)) / (size * (size - 1))
        found.append(within - 2.0 * between.mean())
    return np.array(found)


def _kernel_variance(x, y):
    """Of the squared MMD of all rows, as far as each row moves it alone."""
    own, other = _mean_kernels(x, x), _mean_kernels(x, y)
    other_own, other_x = _mean_kernels(y, y), _mean_kernels(y, x)
    return 4.0 * np.var(own - other, ddof=1) / len(x) + 4.0 * np.var(other_own - other_x, ddof=1) / len(y)


def _mean_kernels(x, y):
    """The mean of each row's kernels with all rows of y, (n,)."""
    return np.concatenate([_kernel(x[i : i + BLOCK], y).mean(axis=1) for i in range(0, len(x), BLOCK)])


def _kernel(x, y):
    kernel = x @ y.T / x.shape[1] + 1.0
    return kernel * kernel * kernel  # numpy's power takes ten times as long


def _squared_distances(x, y):
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2.0 * x @ y.T
    return np.maximum(squares, 0.0)
