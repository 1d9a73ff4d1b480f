"""What tests of adaptations share: a model of their own, without those of the test before."""

import pytest

from tests.conftest import make_tiny_model


@pytest.fixture(scope="module")
def model():
    return make_tiny_model()


@pytest.fixture
def adaptations(model):
    yield model.adaptations
    for name in model.adaptations.weights:
        model.adaptations.remove(name)
