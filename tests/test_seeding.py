import numpy as np

from sd_tf import seeding as noise


def test_mix_gives_the_published_numbers_of_splitmix64():
    # The first outputs for the seed 1234567, as printed with the reference implementation's tests.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + (k + 1) * golden) % 2**64 for k in range(4)], np.uint64)
    assert noise._mix(states).tolist() == published


def test_uniforms_belong_to_an_index_and_not_to_its_place():
    together = noise.uniforms((5, 2), range(100), 3)
    np.testing.assert_array_equal(noise.uniforms((5, 2), [42, 7], 3), together[[42, 7]])
    np.testing.assert_array_equal(noise.uniforms((5, 2), [42], 2), together[[42], :2])
    assert (
        len(np.unique(np.stack([together, *(noise.uniforms(k, range(100), 3) for k in [(5, 3), (2, 5)])])))
        == 900
    )


def test_uniforms_are_uniform_and_independent():
    numbers = noise.uniforms((0, 0), range(20_000), 4)
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in numbers.T])
    chi_squared = ((counts - 1000) ** 2 / 1000).sum(axis=1)  # 19 degrees of freedom
    assert (chi_squared < 50).all()  # exceeded once in 7,000 by a perfect generator
    correlation = np.corrcoef(numbers.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)
    assert abs(np.corrcoef(numbers[1:, 0], numbers[:-1, 0])[0, 1]) < 5 / np.sqrt(20_000)


def test_normals_have_the_moments_and_the_tails_of_a_standard_normal():
    numbers = noise.normals((3, 1), range(2_000), (8, 8, 4)).ravel()  # 512,000 of them
    assert abs(numbers.mean()) < 0.006 and abs(numbers.std() - 1) < 0.004
    for threshold, probability in ((1.0, 0.158655), (2.0, 0.022750), (3.0, 0.001350)):
        assert abs((numbers > threshold).mean() / probability - 1) < 0.15
    rows = numbers.reshape(2_000, -1)
    assert abs(np.corrcoef(rows[:, :-1].ravel(), rows[:, 1:].ravel())[0, 1]) < 0.006


def test_normals_belong_to_an_index_and_not_to_its_place():
    together = noise.normals((3, 1), range(50), (3, 3))
    assert together.dtype == np.float32
    np.testing.assert_array_equal(noise.normals((3, 1), [42, 7], (3, 3)), together[[42, 7]])
    assert not np.array_equal(noise.normals((3, 2), [42], (3, 3)), together[[42]])
