"""CLIP against transformers' CLIP: the same weights, the same numbers."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from keras import ops

from sd_tf.errors import InputError
from sd_tf.text.clip import CLIPModel, CLIPTextModel, CLIPVisionModel, contrastive_loss
from sd_tf.text.config import CLIPTextConfig, CLIPVisionConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = CLIPTextConfig(
    vocab_size=99,
    hidden_size=24,
    intermediate_size=40,
    projection_dim=10,
    num_hidden_layers=3,
    num_attention_heads=3,
    max_position_embeddings=11,
    pad_token_id=98,
    bos_token_id=97,
    eos_token_id=98,
)
VISION = CLIPVisionConfig(
    hidden_size=20,
    intermediate_size=36,
    projection_dim=10,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
)
TEXTS = {
    "quick_gelu": TEXT,
    "exact gelu, one head": dataclasses.replace(TEXT, hidden_act="gelu", num_attention_heads=1),
    "legacy end token": dataclasses.replace(TEXT, eos_token_id=2),
    "coarse layer norm": dataclasses.replace(TEXT, layer_norm_eps=1e-2, hidden_size=21, intermediate_size=13),
}
VISIONS = {
    "quick_gelu": VISION,
    "exact gelu": dataclasses.replace(VISION, hidden_act="gelu"),
    "patches that do not fill the image": dataclasses.replace(VISION, image_size=23, patch_size=5),
    "coarse layer norm": dataclasses.replace(VISION, layer_norm_eps=1e-2, num_attention_heads=5),
}


def token_ids(config, rows=4):
    """Rows of random words, each ended at a place of its own and padded with the end token."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, config.vocab_size - 2, (rows, config.max_position_embeddings))
    for i, row in enumerate(ids):
        row[0] = config.bos_token_id
        row[3 + i :] = config.vocab_size - 1
    return ids.astype("int32")


def images(config, rows=4):
    shape = (rows, config.image_size, config.image_size, config.num_channels)
    return np.random.default_rng(1).standard_normal(shape).astype("float32")


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def shake(module):
    """Weights that hide nothing: transformers starts biases at zero and layer norms at one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name != "logit_scale":
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def reference_text(config):
    return shake(transformers.CLIPTextModel(transformers.CLIPTextConfig(**dataclasses.asdict(config))))


def reference_vision(config):
    return shake(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**dataclasses.asdict(config))))


def reference_clip(text=TEXT, vision=VISION):
    config = transformers.CLIPConfig(
        text_config=dataclasses.asdict(text),
        vision_config=dataclasses.asdict(vision),
        projection_dim=text.projection_dim,
    )
    return shake(transformers.CLIPModel(config))


def saved_keys(module, folder):
    """The key -> array of the file that transformers writes."""
    from safetensors.numpy import load_file

    module.save_pretrained(folder)
    keys = load_file(folder / "model.safetensors")
    # Published files carry the tower's name, which some 5.x releases leave out where it stands alone.
    tower = {"CLIPTextModel": "text_model.", "CLIPVisionModel": "vision_model."}.get(
        type(module).__name__, ""
    )
    return {key if key.startswith(tower) else tower + key: value for key, value in keys.items()}


def copy_weights(keys, model):
    """Assign every key to the variable whose path it is; both sides are used up."""
    keys = dict(keys)
    model.build()
    for variable in model.variables:
        *modules, leaf = variable.path.split("/")[1:]
        leaf = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "beta": "bias"}.get(leaf, leaf)
        value = keys.pop(".".join([*modules, leaf]))
        if variable.path.endswith("/kernel"):
            value = value.transpose((2, 3, 1, 0) if value.ndim == 4 else (1, 0))
        assert value.shape == tuple(variable.shape), variable.path
        variable.assign(value)
    assert not keys
    return model


def assert_close(ours, theirs, tolerance=1e-4):
    ours, theirs = ops.convert_to_numpy(ops.cast(ours, "float32")), theirs.detach().float().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() / theirs.std() <= tolerance


@pytest.fixture(scope="module")
def clip_pair(tmp_path_factory):
    reference = reference_clip()
    return reference, copy_weights(
        saved_keys(reference, tmp_path_factory.mktemp("clip")), CLIPModel(TEXT, VISION)
    )


@pytest.mark.parametrize("config", TEXTS.values(), ids=TEXTS)
def test_text_tower_equals_transformers(config, tmp_path):
    reference = reference_text(config)
    model, ids = copy_weights(saved_keys(reference, tmp_path), CLIPTextModel(config)), token_ids(config)
    expected = reference(torch.from_numpy(ids).long(), output_hidden_states=True)
    output = model(ids)
    assert_close(output.last_hidden_state, expected.last_hidden_state)
    assert_close(output.pooled, expected.pooler_output)
    norm = getattr(reference, "text_model", reference).final_layer_norm
    assert_close(model(ids, layer=-2).last_hidden_state, norm(expected.hidden_states[-2]))


def test_text_tower_reads_fewer_tokens_than_it_has_positions(tmp_path):
    reference = reference_text(TEXT)
    model, ids = copy_weights(saved_keys(reference, tmp_path), CLIPTextModel(TEXT)), token_ids(TEXT)[:1, :5]
    assert_close(model(ids).last_hidden_state, reference(torch.from_numpy(ids).long()).last_hidden_state)


@pytest.mark.parametrize("config", VISIONS.values(), ids=VISIONS)
def test_image_tower_equals_transformers(config, tmp_path):
    reference = reference_vision(config)
    model, pixels = copy_weights(saved_keys(reference, tmp_path), CLIPVisionModel(config)), images(config)
    expected = reference(channels_first(pixels))
    output = model(pixels)
    assert_close(output.last_hidden_state, expected.last_hidden_state)
    assert_close(output.pooled, expected.pooler_output)


def test_features_and_logits_equal_transformers(clip_pair):
    reference, model = clip_pair
    ids, pixels = token_ids(TEXT, 3), images(VISION, 4)
    expected = reference(torch.from_numpy(ids).long(), channels_first(pixels))
    assert_close(model.text_features(ids), expected.text_embeds)
    assert_close(model.image_features(pixels), expected.image_embeds)
    assert_close(model(ids, pixels), expected.logits_per_text)


def test_default_tower_is_the_one_of_stable_diffusion_1():
    model = CLIPTextModel()
    model.build()
    assert model.count_params() == 123_060_480


def test_a_new_model_starts_as_transformers_does():
    reference = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=dataclasses.asdict(TEXT), vision_config=dataclasses.asdict(VISION), projection_dim=10
        )
    )
    model = CLIPModel(TEXT, VISION)
    model.build()
    stds = {v.path.split("/", 1)[1]: float(ops.std(v)) for v in model.variables}
    for key, value in reference.state_dict().items():
        module, _, leaf = key.rpartition(".")
        path = module.replace(".", "/").replace("layers/", "layers.")
        path = next(p for p in stds if p.startswith(path) and (p.count("/") == path.count("/") + bool(path)))
        if leaf == "weight" and value.ndim > 1:
            assert stds[path] == pytest.approx(float(value.std()), rel=0.35), key
    assert float(model.logit_scale) == pytest.approx(reference.logit_scale.item(), abs=1e-4)
    assert float(model.logit_scale) == pytest.approx(math.log(1 / 0.07))
    layer = model.text_model.encoder.layers[0].self_attn
    assert np.abs(ops.convert_to_numpy(layer.q_proj.kernel - layer.k_proj.kernel)).max() > 0


def test_a_later_token_leaves_earlier_states_unchanged():
    model = CLIPTextModel(TEXT)
    ids = token_ids(TEXT)
    changed = ids.copy()
    changed[:, 6] = (changed[:, 6] + 1) % 90
    before, after = (ops.convert_to_numpy(model(x).last_hidden_state) for x in (ids, changed))
    np.testing.assert_allclose(after[:, :6], before[:, :6], atol=1e-6)
    assert (np.abs(after[:, 6:] - before[:, 6:]).max(axis=-1) > 1e-5).all()


@pytest.mark.parametrize(
    "model",
    [CLIPTextModel(TEXT, name="a"), CLIPVisionModel(VISION, name="b"), CLIPModel(TEXT, VISION, name="c")],
    ids=lambda model: type(model).__name__,
)
def test_models_survive_serialisation(model, tmp_path):
    def outputs(model):
        inputs = {"CLIPTextModel": [token_ids(TEXT)], "CLIPVisionModel": [images(VISION)]}
        return np.asarray(
            keras.tree.flatten(model(*inputs.get(type(model).__name__, [token_ids(TEXT), images(VISION)])))[0]
        )

    again = type(model).from_config(model.get_config())
    assert again.get_config() == model.get_config()
    expected = outputs(model)
    assert [(v.path, v.shape) for v in model.variables] == [
        (v.path, v.shape) for v in _built(again).variables
    ]
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(keras.saving.load_model(tmp_path / "model.keras")), expected)


def _built(model):
    model.build()
    return model


def test_layers_keep_their_configuration():
    for layer in CLIPModel(TEXT, VISION), CLIPTextModel(TEXT):
        tower = _built(layer).text_model
        again = type(tower).from_config(tower.get_config())
        assert (again.config, again.name) == (TEXT, "text_model")


def test_mixed_precision_stays_near_full_precision(clip_pair):
    _, model = clip_pair
    mixed = CLIPModel(TEXT, VISION, dtype="mixed_bfloat16")
    mixed.build()
    for ours, theirs in zip(mixed.variables, model.variables, strict=True):
        ours.assign(theirs)
    assert {v.dtype for v in mixed.variables} == {"float32"}
    ids, pixels = token_ids(TEXT), images(VISION)
    assert mixed.text_model(ids).last_hidden_state.dtype == "bfloat16"
    assert mixed.vision_model(pixels).pooled.dtype == "bfloat16"
    for name, inputs in (("text_features", ids), ("image_features", pixels)):
        exact, half = (np.asarray(getattr(m, name)(inputs)) for m in (model, mixed))
        assert half.dtype == "float32"
        assert (exact * half).sum(axis=-1).min() > 0.999  # the cosine of the two


def test_compiled_equals_eager(clip_pair):
    tf = pytest.importorskip("tensorflow")
    _, model = clip_pair
    ids, pixels = token_ids(TEXT), images(VISION)
    for name, inputs in (("text_features", ids), ("image_features", pixels)):
        method = getattr(model, name)
        signature = tf.TensorSpec((None, *inputs.shape[1:]), inputs.dtype)
        compiled = tf.function(method, input_signature=[signature])
        np.testing.assert_allclose(compiled(inputs), method(inputs), atol=1e-6)


@pytest.mark.parametrize("size", [(224, 224), (64, 48), (50, 301)])
def test_preprocessing_equals_transformers(size):
    config = dataclasses.replace(VISION, image_size=32)
    # Neither side reaches black or white, where Pillow would also clip between its two passes.
    pixels = np.random.default_rng(0).integers(60, 200, (2, *size, 3), dtype=np.uint8)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    expected = processor(list(pixels), return_tensors="pt").pixel_values.numpy().transpose(0, 2, 3, 1)
    result = np.asarray(CLIPModel(TEXT, config).preprocess(pixels / 127.5 - 1))
    assert result.shape == expected.shape
    # transformers rounds to whole grey levels after each pass of the resize.
    assert np.abs(result - expected).max() <= 1.5 / 255 / 0.26


def test_preprocessing_an_image_of_the_right_size_only_normalises():
    pixels = np.zeros((1, 32, 32, 3), "float32")
    result = np.asarray(CLIPModel(TEXT, VISION).preprocess(pixels))
    grey = (0.5 - np.array([0.48145466, 0.4578275, 0.40821073])) / [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(result, np.broadcast_to(grey, result.shape), atol=1e-6)


def test_contrastive_loss_of_different_texts_equals_transformers(clip_pair):
    reference, model = clip_pair
    ids, pixels = token_ids(TEXT), images(VISION)
    expected = reference(torch.from_numpy(ids).long(), channels_first(pixels), return_loss=True)
    loss = contrastive_loss(
        model.text_features(ids), model.image_features(pixels), model.logit_scale, np.arange(4)
    )
    assert loss.shape == (4,)
    assert float(ops.mean(loss)) == pytest.approx(expected.loss.item(), rel=1e-5)


def test_contrastive_loss_spreads_its_target_over_a_group():
    rng = np.random.default_rng(0)
    text, image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.standard_normal((2, 5, 7)))
    groups = np.array([3, 8, 3, 1, 3])
    logits = torch.from_numpy(text @ image.T * 10)
    targets = torch.zeros(5, 5, dtype=torch.float64)
    for i, j in np.ndindex(5, 5):
        targets[i, j] = (groups[i] == groups[j]) / (groups == groups[i]).sum()
    cross_entropy = torch.nn.functional.cross_entropy
    expected = [cross_entropy(x, targets, reduction="none") for x in (logits, logits.T)]
    loss = contrastive_loss(text.astype("float32"), image.astype("float32"), math.log(10.0), groups)
    np.testing.assert_allclose(loss, (expected[0] + expected[1]) / 2, rtol=1e-5)


def test_repeated_captions_in_perfect_agreement_cost_only_their_entropy():
    features = np.eye(3, dtype="float32")[[0, 0, 1, 2]]
    loss = np.asarray(contrastive_loss(features, features, math.log(100.0), np.array([0, 0, 1, 2])))
    np.testing.assert_allclose(loss, [math.log(2), math.log(2), 0, 0], atol=1e-6)


def test_training_lowers_the_loss_and_caps_the_logit_scale():
    tf = pytest.importorskip("tensorflow")
    keras.utils.set_random_seed(0)
    model = CLIPModel(*(dataclasses.replace(config, num_hidden_layers=1) for config in (TEXT, VISION)))
    ids, groups = token_ids(TEXT, 8), np.arange(8)
    pixels = images(VISION, 8)
    model.build()
    model.logit_scale.assign(math.log(100.0))
    optimizer = keras.optimizers.Adam(2e-3)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            features = model.text_features(ids), model.image_features(pixels)
            loss = ops.mean(contrastive_loss(*features, model.logit_scale, groups))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    losses = [float(step()) for _ in range(30)]
    assert losses[0] > math.log(8)  # no better than guessing
    assert losses[-1] < 0.1 * losses[0]
    assert float(ops.exp(model.logit_scale)) <= 100.01


def test_the_logit_scale_is_clamped_where_a_step_would_pass_100():
    model = CLIPModel(TEXT, VISION)
    model.build()
    model.logit_scale.assign(math.log(99.0))
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.apply([ops.convert_to_tensor(-3.0)], [model.logit_scale])
    assert float(ops.exp(model.logit_scale)) == pytest.approx(100.0, rel=1e-5)
    optimizer.apply([ops.convert_to_tensor(1.0)], [model.logit_scale])
    assert float(ops.exp(model.logit_scale)) == pytest.approx(100.0 / math.e, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: CLIPTextModel(dataclasses.replace(TEXT, hidden_act="quick_gelo")), "'quick_gelo'"),
        (lambda: CLIPTextModel(dataclasses.replace(TEXT, num_attention_heads=5)), "5 heads"),
        (lambda: CLIPVisionModel(dataclasses.replace(VISION, num_attention_heads=3)), "3 heads"),
        (lambda: CLIPModel(TEXT, dataclasses.replace(VISION, projection_dim=11)), "11"),
        (lambda: CLIPTextModel(TEXT)(np.zeros((1, 12), "int32")), "12 tokens"),
        (lambda: CLIPTextModel(TEXT)(token_ids(TEXT), layer=-4), "layer -4"),
        (lambda: CLIPVisionModel(VISION)(np.zeros((1, 31, 32, 3), "float32")), "31"),
        (lambda: CLIPModel(TEXT, VISION).preprocess(np.zeros((1, 32, 32, 1))), "32, 1"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()
