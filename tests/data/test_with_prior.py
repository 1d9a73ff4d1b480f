"""A second data set mixed into a first: shares, order, and each example what it is in its own."""

import numpy as np
import pytest

from sd_tf.data.garments import Garments
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
