"""A second data set mixed into a first: shares, order, and each example what it is in its own."""

import numpy as np
import pytest

from sd_tf.data.garments import Garments
from sd_tf.data.pipeline import Examples
from sd_tf.data.with_prior import WithPrior


class Few:
    """The first so many of another data set."""

    def __init__(self, dataset, number):
        self.dataset, self.number = dataset, number
        self.name, self.image_size, self.preview_prompts = "few", dataset.image_size, ("a dress",)
        self.distinct_epochs = 1
        self.fingerprint = f"{dataset.fingerprint} {number}"

    def __len__(self):
        return self.number

    def corpus(self):
        return ("a dress", "a bag")

    def examples(self, indices, epoch):
        assert len(indices) and max(indices) < self.number
        return self.dataset.examples(indices, epoch)


OWN, PRIOR = Few(Garments(32, seed=0), 6), Few(Garments(32, seed=1), 10)


@pytest.mark.parametrize(("share", "of_prior"), [(0.5, 6), (0.25, 2), (0.8, 24)])
def test_an_epoch_has_all_of_the_one_and_so_many_of_the_other(share, of_prior):
    mixed = WithPrior(OWN, PRIOR, share)
    assert len(mixed) == 6 + of_prior
    assert mixed.distinct_epochs == -(-len(PRIOR) // of_prior)
    assert mixed.corpus() == OWN.corpus() + PRIOR.corpus()


def test_examples_are_those_of_their_own_data_set_in_the_order_asked_for():
    mixed = WithPrior(OWN, PRIOR, 0.5)
    indices = [7, 0, 11, 3]
    found = mixed.examples(indices, epoch=0)
    expected = [PRIOR.examples([1], 0), OWN.examples([0], 0), PRIOR.examples([5], 0), OWN.examples([3], 0)]
    for i, one in enumerate(expected):
        np.testing.assert_array_equal(found.images[i], one.images[0])
        assert found.captions[i] == one.captions[0]
    assert found.images.dtype == np.uint8 and found.groups.dtype == np.int32
    only = mixed.examples([1, 2], 0)
    np.testing.assert_array_equal(only.images, OWN.examples([1, 2], 0).images)


def test_later_epochs_go_on_through_the_prior():
    mixed = WithPrior(OWN, PRIOR, 0.5)
    second = mixed.examples([6], epoch=1)
    np.testing.assert_array_equal(second.images, PRIOR.examples([6], 1).images)


class Numbered(Few):
    """Pictures that are the same in every epoch, each of one value: its number."""

    def examples(self, indices, epoch):
        images = np.stack([np.full((32, 32, 3), i, np.uint8) for i in indices])
        return Examples(images, ["a bag"] * len(indices), np.zeros(len(indices), np.int32))


@pytest.mark.parametrize(("share", "epochs"), [(0.25, 5), (0.5, 2), (0.8, 1)])
def test_all_of_the_prior_comes_in_so_many_epochs_and_not_in_fewer(share, epochs):
    mixed = WithPrior(OWN, Numbered(PRIOR.dataset, 10), share)

    def seen(number):
        places = range(len(OWN), len(mixed))
        return {each for i in range(number) for each in mixed.examples(places, i).images[:, 0, 0, 0].tolist()}

    assert mixed.epochs_of_all == epochs
    assert len(seen(epochs)) == 10 and len(seen(epochs - 1)) < 10
