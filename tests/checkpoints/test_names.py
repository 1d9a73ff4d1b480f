"""The rule between Keras paths and checkpoint keys, against the keys and shapes of diffusers."""

import dataclasses

import keras
import numpy as np
import pytest

from sd_tf.checkpoints.names import (
    assign,
    check,
    current_names,
    from_torch,
    key_of,
    keyed_variables,
    shapes,
    to_torch,
    torch_shape,
)
from sd_tf.errors import InputError


class InMemory:
    """What `assign` reads from, without a file."""

    file = "F"

    def __init__(self, values, key=""):
        self.values, self.shape, self.key = np.asarray(values), np.shape(values), key

    def check_dtype(self):
        """Nothing is quantised."""

    def read(self):
        return self.values


def in_memory(**tensors):
    return {key: InMemory(values, key) for key, values in tensors.items()}


def tensors(model):
    return {key: to_torch(variable) for key, variable in keyed_variables(model).items()}


@pytest.mark.parametrize(
    ("part", "name"), [("autoencoder", "AutoencoderKL"), ("unet", "UNet2DConditionModel")]
)
def test_keys_and_shapes_are_those_of_diffusers(tiny_model, part, name):
    diffusers = pytest.importorskip("diffusers")
    ours = getattr(tiny_model, part)
    options = dataclasses.asdict(ours.config)
    del options["kept"]
    if part == "autoencoder":
        options |= {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        }
    state = getattr(diffusers, name)(**options).state_dict()
    assert shapes(ours) == {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize(
    ("path", "shape", "key", "stored"),
    [
        ("m/a.0/conv/kernel", (3, 5, 2, 7), "a.0.conv.weight", (7, 2, 3, 5)),
        ("m/a.0/conv/kernel", (3, 5, 4, 2, 7), "a.0.conv.weight", (7, 2, 3, 5, 4)),
        ("m/a/to_out.0/kernel", (4, 6), "a.to_out.0.weight", (6, 4)),
        ("m/a/norm/gamma", (4,), "a.norm.weight", (4,)),
        ("m/a/norm/beta", (4,), "a.norm.bias", (4,)),
        ("m/a/bias", (4,), "a.bias", (4,)),
        ("m/token/embeddings", (9, 4), "token.weight", (9, 4)),
        ("m/logit_scale", (), "logit_scale", ()),
    ],
    ids=lambda value: str(value),
)
def test_a_path_is_a_key_and_a_kernel_turns_its_axes(path, shape, key, stored):
    value = np.random.default_rng(0).standard_normal(shape).astype("float32")
    variable = keras.Variable(value, name=path.rpartition("/")[2])
    variable._path = path
    assert key_of(variable) == key
    assert torch_shape(variable) == to_torch(variable).shape == stored
    np.testing.assert_array_equal(from_torch(variable, to_torch(variable)), value)


def test_a_dense_kernel_multiplies_as_torch_does():
    torch = pytest.importorskip("torch")
    layer = keras.layers.Dense(6, name="dense")
    layer.build((None, 4))
    layer.bias.assign(np.arange(6.0))
    state = {key: torch.from_numpy(value.copy()) for key, value in tensors(layer).items()}
    reference = torch.nn.Linear(4, 6)
    reference.load_state_dict(state)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    np.testing.assert_allclose(layer(x), reference(torch.from_numpy(x)).detach().numpy(), atol=1e-6)


def test_a_volume_kernel_convolves_as_torch_does():
    torch = pytest.importorskip("torch")
    layer = keras.layers.Conv3D(4, (3, 1, 2), padding="valid", name="conv")
    layer.build((None, None, None, None, 2))
    layer.bias.assign(np.arange(4.0))
    reference = torch.nn.Conv3d(2, 4, (3, 1, 2))
    assert shapes(layer) == {key: tuple(value.shape) for key, value in reference.state_dict().items()}
    state = {key: torch.from_numpy(value.copy()) for key, value in tensors(layer).items()}
    reference.load_state_dict(state)
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 3, 2)).astype("float32")
    expected = reference(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).detach().numpy()
    np.testing.assert_allclose(layer(x), np.moveaxis(expected, 1, -1), atol=1e-5)
    assign(layer, in_memory(**{key: value.numpy() for key, value in state.items()}), "F")
    np.testing.assert_allclose(layer(x), np.moveaxis(expected, 1, -1), atol=1e-5)


def small_layer():
    layer = keras.layers.Dense(3, name="dense")
    layer.build((None, 2))
    return layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("bias"), "F: missing 1 tensor: bias"),
        (
            lambda file: file.update(in_memory(weight=np.zeros((2, 3)))),
            r"F: weight has shape \(2, 3\), the configuration wants \(3, 2\)",
        ),
    ],
    ids=["missing", "wrong shape"],
)
def test_a_file_that_does_not_fit_is_refused(change, message):
    file = in_memory(weight=np.ones((3, 2)), bias=np.ones(3))
    check(shapes(small_layer()), file, "F")
    change(file)
    with pytest.raises(InputError, match=message):
        check(shapes(small_layer()), file, "F")


@pytest.mark.parametrize(("number", "named"), [(1, "1 tensor: x0$"), (5, "5 tensors: x0, x1, x2 and 2 more")])
def test_keys_that_are_left_over_are_warned_of(number, named):
    file = in_memory(weight=np.ones((3, 2)), bias=np.ones(3))
    file |= in_memory(**{f"x{i}": np.zeros(1) for i in range(number)})
    with pytest.warns(UserWarning, match=f"F: not read, as the network has no such weights: {named}"):
        check(shapes(small_layer()), file, "F")


def test_every_key_is_used_once():
    file = in_memory(weight=np.arange(6.0).reshape(3, 2), bias=np.arange(3.0))
    layer = small_layer()
    assign(layer, file, "F")
    kernel, bias = layer.get_weights()
    np.testing.assert_array_equal(kernel, file["weight"].values.T)
    np.testing.assert_array_equal(bias, file["bias"].values)


def test_values_that_are_no_numbers_are_warned_of_by_key():
    file = in_memory(weight=np.arange(6.0).reshape(3, 2), bias=np.array([0, np.nan, 1]))
    with pytest.warns(UserWarning, match="F: NaN or infinite values in 1 tensor: bias"):
        assign(small_layer(), file, "F")


@pytest.mark.parametrize(
    ("old", "new", "tower"),
    [
        ("encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.to_q.weight", ""),
        ("mid_block.attentions.0.proj_attn.bias", "mid_block.attentions.0.to_out.0.bias", ""),
        ("a.attentions.0.to_k.bias", "a.attentions.0.to_k.bias", ""),
        ("memory.key.weight", "memory.key.weight", ""),
        ("encoder.layers.0.bias", "text_model.encoder.layers.0.bias", "text_model."),
        ("text_model.final.bias", "text_model.final.bias", "text_model."),
        ("text_projection.weight", "text_projection.weight", "text_model."),
    ],
)
def test_keys_of_older_and_newer_releases_are_read(old, new, tower):
    assert list(current_names({old: InMemory(0)}, tower)) == [new]


def test_an_old_and_a_new_key_for_one_tensor_are_refused():
    file = {key: InMemory(0, key) for key in ("attentions.0.query.bias", "attentions.0.to_q.bias")}
    with pytest.raises(InputError, match=r"F: attentions.0.query.bias and attentions.0.to_q.bias are both"):
        current_names(file)


def test_two_variables_with_one_key_are_noticed():
    model = keras.Sequential([keras.layers.Dense(2, name="same"), keras.layers.Dense(2, name="other")])
    model.build((None, 2))
    for variable in model.layers[1].variables:
        variable._path = variable.path.replace("other", "same")
    with pytest.raises(ValueError, match="two variables of .* have one checkpoint key"):
        keyed_variables(model)
