"""What tests share: the real data, a whole model of the smallest sizes, weights copied from torch."""

import ctypes
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="sd_tf-tests-")  # nothing is left in the user's

import keras
import numpy as np
import pytest

from sd_tf.diffusion.schedules import ScheduleConfig
from sd_tf.latent.config import AutoencoderConfig, UNetConfig
from sd_tf.text.config import CLIPTextConfig

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without


def pytest_sessionfinish(session, exitstatus):
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def memory_goes_back():
    """What the tests of a file have used is given back to the system, which several processes share."""
    yield
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of real data."""
    folder = Path(os.environ.get("SD_TF_DATA_DIR") or "no folder named")
    if not folder.is_dir():
        pytest.skip(f"needs real data: $SD_TF_DATA_DIR is {folder}")
    return folder


def shake_variables(model, seed=0, scale=0.2):
    """Weights that hide nothing: Keras starts biases at zero and norms at one."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        value = np.asarray(variable.value)
        variable.assign(value + scale * rng.standard_normal(value.shape).astype("float32"))
    return model


@pytest.fixture(scope="session")
def tiny_model():
    """That of `make_tiny_model`, one for all tests."""
    return make_tiny_model()


def drawn_by_diffusers(pipeline, prompts, latents, steps, guidance_scale, **options):
    """What a pipeline of diffusers makes of our latents (n, h, w, c): (n, height, width, 3), 0...255."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    if latents is not None:
        options["latents"] = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())
    images = pipeline(
        prompts, num_inference_steps=steps, guidance_scale=guidance_scale, output_type="np", **options
    ).images
    return np.round(images * 255)


def make_tiny_model():
    """A random `LatentDiffusion`: pictures of 16 x 16, latents of 8 x 8, a text tower 16 wide."""
    from sd_tf.diffusion.schedules import NoiseSchedule
    from sd_tf.latent.autoencoder import AutoencoderKL
    from sd_tf.latent.model import LatentDiffusion
    from sd_tf.latent.unet import UNet
    from sd_tf.text.clip import CLIPTextModel
    from sd_tf.text.tokenizer import Tokenizer

    keras.utils.set_random_seed(0)  # the same model for every run of the tests
    tokenizer = Tokenizer.learn(["a red dress", "a blue bag", "a dress", "a bag"], 530, max_length=10)
    parts = {
        "autoencoder": AutoencoderKL(
            AutoencoderConfig(
                block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16
            )
        ),
        "unet": UNet(
            UNetConfig(
                sample_size=8,
                block_out_channels=(16, 32),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=2,
                cross_attention_dim=16,
                norm_num_groups=8,
            )
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=tokenizer.vocab_size,
                hidden_size=16,
                intermediate_size=32,
                projection_dim=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=10,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
    }
    for seed, part in enumerate(parts.values()):
        part.build()
        shake_variables(part, seed)
    schedule = NoiseSchedule(ScheduleConfig(prediction_type="v_prediction"))
    return LatentDiffusion(**parts, tokenizer=tokenizer, schedule=schedule)


@pytest.fixture
def shapes_alone():
    """Variables made in this test have a shape but no value, so that the largest models can be counted."""
    import keras

    with keras.StatelessScope(initialize_variables=False):
        yield
    keras.utils.clear_session()  # or Keras would fill them after the next scope


@pytest.fixture(scope="session")
def copied():
    """`copied(module, layer)`: the built `layer` with the weights of a torch module of the same key names.

    The torch module's own weights are shaken first, because torch starts norms at one and zero.
    `scale` then multiplies its convolutions and dense layers: with small activations every epsilon shows.
    """
    torch = pytest.importorskip("torch", reason="the reference runs on torch")
    from sd_tf.checkpoints.names import assign, check, shapes

    class Parameter:
        """What `check` and `assign` read from, without a file."""

        def __init__(self, values):
            self.values, self.shape, self.file = values, values.shape, "the torch module"

        def check_dtype(self):
            assert np.issubdtype(self.values.dtype, np.floating)

        def read(self):
            return self.values

    def copy(module, layer, scale=1.0):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            for part in module.modules():
                if isinstance(part, (torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)):
                    for parameter in part.parameters():
                        parameter.mul_(scale)
        module.eval()
        state = {key: Parameter(value.detach().numpy()) for key, value in module.state_dict().items()}
        check(shapes(layer), state, type(module).__name__)
        assign(layer, state, type(module).__name__)
        return layer

    return copy


@pytest.fixture(scope="session")
def torch_call():
    """`torch_call(module, *arrays)`: a torch module's result on numpy arrays, all channels last."""
    torch = pytest.importorskip("torch", reason="the reference runs on torch")

    def call(module, *arrays, **options):
        tensors = [torch.from_numpy(np.array(_channels_first(array))) for array in arrays]
        with torch.no_grad():
            result = module(*tensors, **options)
        result = result if isinstance(result, torch.Tensor) else result[0]
        return result.numpy() if result.ndim < 4 else np.moveaxis(result.numpy(), 1, -1)

    return call


def _channels_first(array):
    return np.moveaxis(array, -1, 1) if array.ndim >= 4 else array


@pytest.fixture(scope="session")
def distance():
    """`distance(ours, reference)`: the largest difference, in standard deviations of the reference."""

    def measure(ours, reference):
        ours, reference = np.asarray(ours, "float32"), np.asarray(reference, "float32")
        assert ours.shape == reference.shape
        return np.abs(ours - reference).max() / reference.std()

    return measure
