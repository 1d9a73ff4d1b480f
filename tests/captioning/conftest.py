"""A tiny BLIP, one for all tests."""

import pytest

from tests.captioning.tiny import write_blip


@pytest.fixture(scope="session")
def blip(tmp_path_factory):
    pytest.importorskip("torch", reason="BLIP runs on torch")
    pytest.importorskip("transformers", reason="the reference")
    return write_blip(tmp_path_factory.mktemp("blip"))
