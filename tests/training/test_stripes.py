"""A LoRA of the bundled model learns stripes, as in notebook 3, and draws them in diffusers as well."""

import json

import numpy as np
import pytest

import sd_tf
from sd_tf.checkpoints.sources import BUNDLED
from sd_tf.evaluation.scores import CLASS_PROMPTS, TINTED_PROMPTS
from sd_tf.images import save_png
from sd_tf.lora.files import FILE
from tests.conftest import drawn_by_diffusers
from tests.training.tiny import train

pytestmark = pytest.mark.slow

BRIGHT = np.arange(32) // 2 % 2 == 1  # rows that stripes leave as they are; the others become darker
PROMPTS = ["a striped dress", "a striped red pullover", "a striped blue bag", "a striped green shirt"]
SETTINGS = {"guidance_scale": 2.0, "engine": "tensorflow", "progress": False}


def contrast(images):
    """How much brighter the rows are that stripes leave: 1 without stripes."""
    return images[:, BRIGHT].mean() / images[:, ~BRIGHT].mean()


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    """A folder of garments that the model drew, with stripes, and their pictures."""
    folder = tmp_path_factory.mktemp("striped")
    prompts = CLASS_PROMPTS + TINTED_PROMPTS[::2]
    images = sd_tf.load("fashion-mnist").generate(prompts, steps=15, seed=100, **SETTINGS)
    images = (images * np.where(BRIGHT, 1.0, 0.3)[:, None, None]).astype(np.uint8)
    lines = []
    for number, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        save_png(folder / f"{number}.png", image)
        words = prompt.split(" ", 1)[1]
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a striped {words}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder, images


@pytest.fixture(scope="module")
def run(striped, tmp_path_factory):
    """The folder of a run that learned from them."""
    folder = tmp_path_factory.mktemp("runs") / "stripes"
    settings = {"init_from": "fashion-mnist", "finetune": "lora", "learning_rate": 3e-3, "batch_size": 32}
    settings |= {"dataset": "folder", "data_dir": str(striped[0]), "max_steps": 300, "warmup_steps": 10}
    train({**settings, "previews": 0, "output": folder})
    return folder


def test_prompts_that_say_striped_become_striped_and_with_weight_0_nothing_changes(striped, run):
    model = sd_tf.load("fashion-mnist")
    plain = model.generate(PROMPTS, 8, **SETTINGS)
    model.load_lora(run)
    learned = model.generate(PROMPTS, 8, **SETTINGS)
    assert abs(contrast(plain) - 1) < 0.1
    assert contrast(learned) - 1 > 0.2 * (contrast(striped[1]) - 1)
    model.adaptations.weigh({"stripes": 0.0})
    np.testing.assert_array_equal(model.generate(PROMPTS, 8, **SETTINGS), plain)


def test_diffusers_draws_the_same_pictures_with_it(run):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        BUNDLED / "fashion-mnist", torch_dtype=torch.float32
    )
    pipeline.load_lora_weights(run, weight_name=FILE)
    latents = np.random.default_rng(0).standard_normal((4, 8, 8, 4)).astype("float32")
    reference = drawn_by_diffusers(pipeline, PROMPTS, latents, 20, 2.0)
    model = sd_tf.load("fashion-mnist")
    plain = model.generate(PROMPTS, latents=latents, **SETTINGS)
    model.load_lora(run)
    learned = model.generate(PROMPTS, latents=latents, **SETTINGS)
    assert np.abs(reference - learned).max() <= 2
    assert np.abs(learned.astype(int) - plain).max() > 20
