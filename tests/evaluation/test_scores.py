"""The evaluation's own honesty: whatever is wrong with pictures, the score that should notice does."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sd_tf.data.captions import PALETTE
from sd_tf.data.fashion_mnist import FashionMNIST
from sd_tf.evaluation import scores
from sd_tf.evaluation.judging import Judges
from sd_tf.evaluation.statistics import frechet_distance
from sd_tf.text.clip import CLIPTextModel

PER_CLASS, PER_PAIR = 200, 10
DRAWING = {"sampler": "none: real pictures", "seed": 0}


@pytest.fixture(scope="module")
def judges(data_dir):
    train, test = (FashionMNIST(split, data_dir) for split in ("train", "test"))
    return Judges(train, test, inception="none")


@pytest.fixture(scope="module")
def as_if_drawn(judges):
    """Real pictures in the places of drawn ones: they show what their prompts ask for."""
    real = judges.real
    of_class = [real.others[real.other_labels == label] for label in range(10)]
    grey = np.concatenate([pictures[:PER_CLASS] for pictures in of_class])
    tinted = np.concatenate(
        [
            (of_class[label][200 + 10 * colour :][:PER_PAIR].astype(np.uint16) * PALETTE[colour] // 255)
            for label, colour in scores.PAIRS
        ]
    ).astype(np.uint8)
    return scores.Drawn(grey, tinted, real.others)


@pytest.fixture(scope="module")
def of_real(judges, as_if_drawn):
    return judges.scores(as_if_drawn, DRAWING)


def changed(drawn, change):
    return scores.Drawn(change(drawn.grey), change(drawn.tinted), change(drawn.rebuilt))


def blurred(images):
    found = [Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.0)) for image in images]
    return np.stack([np.asarray(image) for image in found])


def noised(images):
    noise = np.random.default_rng(0).normal(0, 25, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def test_real_pictures_score_what_the_report_says_that_real_ones_do(of_real):
    for name, score in of_real.items():
        if score.real is None or name == "copies":
            continue
        assert score.value == pytest.approx(score.real, rel=0.35, abs=0.03), name
    assert of_real["frechet_distance"].value < 1.0
    assert of_real["precision"].value > 0.8 and of_real["recall"].value > 0.8
    assert of_real["colour_accuracy"].value > 0.99
    assert of_real["class_accuracy"].value > 0.9 and of_real["tinted_class_accuracy"].value > 0.85
    assert of_real["copies"].value < 0.03
    assert of_real["reconstruction_distance"].value == of_real["reconstruction_distance"].real


@pytest.mark.parametrize("change", [blurred, noised])
def test_blurred_and_noised_pictures_are_further_from_real_ones(judges, as_if_drawn, of_real, change):
    worse = judges.scores(changed(as_if_drawn, change), DRAWING)
    for name in ("frechet_distance", "reconstruction_distance", "kernel_distance"):
        assert worse[name].value > 3 * of_real[name].value, name
        assert worse[name].low > of_real[name].high, name
    assert worse["precision"].value < of_real["precision"].value - 0.05
    assert worse["reconstruction_psnr"].value < 30 < of_real["reconstruction_psnr"].value


def test_pictures_of_other_prompts_agree_less_and_are_no_further_away(judges, as_if_drawn, of_real):
    order = np.random.default_rng(0).permutation
    grey, tinted = as_if_drawn.grey, as_if_drawn.tinted
    shuffled = scores.Drawn(grey[order(len(grey))], tinted[order(len(tinted))], None)
    found = judges.scores(shuffled, DRAWING)
    assert found["class_accuracy"].value < 0.2 and found["tinted_class_accuracy"].value < 0.2
    assert found["colour_accuracy"].value < 0.3
    assert found["clip_score"].high < of_real["clip_score"].low - 5
    assert found["frechet_distance"].value == pytest.approx(of_real["frechet_distance"].value, rel=1e-4)


def test_a_single_class_lacks_recall_and_a_single_picture_diversity(judges, as_if_drawn, of_real):
    shirts = np.tile(as_if_drawn.grey[:PER_CLASS], (10, 1, 1, 1))
    found = judges.scores(as_if_drawn._replace(grey=shirts), DRAWING)
    assert found["frechet_distance"].value > 20 * of_real["frechet_distance"].value
    assert found["recall"].value < 0.5 * of_real["recall"].value
    assert found["class_accuracy"].value < 0.2
    same = np.repeat(as_if_drawn.grey[::PER_CLASS], PER_CLASS, axis=0)
    found = judges.scores(as_if_drawn._replace(grey=same), DRAWING)
    assert found["diversity"].value == pytest.approx(0.0, abs=1e-6) and of_real["diversity"].value > 0.3
    assert found["precision"].value > 0.5 > 0.2 > found["recall"].value


def test_copies_of_training_pictures_are_found(judges, as_if_drawn):
    copies = np.repeat(judges.real.train[:2000, ..., None], 3, axis=-1)
    found = judges.scores(as_if_drawn._replace(grey=copies), DRAWING)
    assert found["copies"].value == 1.0
    assert found["nearest_training_distance"].value < 0.1
    distances, numbers, pictures = judges.nearest_training_pictures(copies[:20])
    np.testing.assert_array_equal(pictures, copies[:20])
    np.testing.assert_array_equal(numbers, np.arange(20))
    assert distances.max() < 1e-3


def test_every_score_says_by_what_protocol_and_a_taught_judge_gives_no_headline(of_real):
    for name, score in of_real.items():
        assert score.better in ("lower", "higher")
        assert score.protocol["samples"] > 0, name
        assert score.low <= score.value <= score.high, name
        if not name.startswith("reconstruction"):  # real pictures stand for them, each its own
            assert score.low < score.high, name
        if not name.startswith("reconstruction"):
            assert score.protocol["seed"] == 0, name
        if "extractor" in score.protocol and name != "colour_accuracy":
            assert len(score.protocol["sha256"]) == 64 and score.protocol["resize"], name
        if score.real is not None:
            assert " pictures" in score.protocol["reference"], name
    assert not of_real["clip_score"].reservation


@pytest.mark.parametrize("width", [16, 128])
def test_pictures_are_too_few_for_a_frechet_distance_where_its_bias_is_large(width):
    """Of two sets from one normal distribution, whose distance is 0: what is found is bias."""
    normals = np.random.default_rng(0).standard_normal
    reference = normals((5000, width))
    [few, enough] = (frechet_distance(normals((n, width)), reference) for n in (2 * width - 1, 10 * width))
    assert few > 4 * enough > 0
    assert not scores.too_few_for_frechet(2 * width, width)
    assert f"draw {2 * width} or more" in scores.too_few_for_frechet(2 * width - 1, width)


def test_few_pictures_are_reserved_and_many_are_not(judges, as_if_drawn, of_real):
    names = ("frechet_distance", "kernel_distance", "tinted_frechet_distance")
    assert not any(of_real[name].reservation for name in names)
    few = judges.scores(scores.Drawn(as_if_drawn.grey[::100], as_if_drawn.tinted[::5], None), DRAWING)
    said = [few[name].reservation for name in names]
    assert said[0].startswith("20 pictures are too few for a covariance of 128 features")
    assert said[1].startswith("20 pictures are fewer than a subset's 1000")
    assert said[2].startswith("160 pictures are too few")


def test_the_clip_that_a_model_reads_prompts_with_gives_no_headline(judges):
    assert judges._taught(judges.clip) and not judges._taught(None)
    other = judges.clip.text_config.vocab_size - 1
    stranger = CLIPTextModel(dataclasses.replace(judges.clip.text_config, vocab_size=other))
    stranger.build()
    assert not judges._taught(stranger)


def test_cosines_are_those_of_transformers(judges, as_if_drawn):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from sd_tf.checkpoints.sources import BUNDLED

    reference = transformers.CLIPModel.from_pretrained(BUNDLED / "clip-mini", dtype=torch.float32).eval()
    images = as_if_drawn.tinted[:: PER_PAIR * 3]
    prompts = scores.TINTED_PROMPTS[::3]
    token_ids = judges.clip_score.tokenizer(prompts)
    pixels = np.asarray(judges.clip.preprocess(images.astype("float32") / 127.5 - 1.0)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        outputs = reference(
            input_ids=torch.from_numpy(np.asarray(token_ids, "int64")),
            pixel_values=torch.from_numpy(pixels.copy()),
        )
    expected = (outputs.text_embeds * outputs.image_embeds).sum(dim=1).numpy()
    found = judges.clip_score.cosines(images, judges.clip_score.text_features(prompts))
    np.testing.assert_allclose(found, expected, atol=1e-4)
