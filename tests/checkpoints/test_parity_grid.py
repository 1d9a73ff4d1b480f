"""Random weights as diffusers and transformers save them, opened here: over a grid of shapes, one answer.

`python -m tests.checkpoints.test_parity_grid` prints every configuration with its differences.
"""

import contextlib
import tempfile
from typing import NamedTuple

import numpy as np
import pytest

from sd_tf.checkpoints import clip as clip_folders
from sd_tf.latent import folder as folders
from tests.parity import deviation, first_divergence, recording, recording_torch

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4  # of the largest difference, in standard deviations of the reference
CONTEXT = (5, 11)  # tokens and width of what the UNets attend to
WORDS = 60  # in the text towers' vocabularies, begin and end the last of them


class Comparison(NamedTuple):
    """What both sides say to the same inputs."""

    results: dict  # part -> (ours, theirs), channels last
    ours: dict  # what each layer says, as in `tests.parity`
    theirs: dict

    def differences(self):
        """Part -> the largest difference, in standard deviations of the reference."""
        for part, (ours, theirs) in self.results.items():
            assert tuple(ours.shape) == tuple(theirs.shape), f"{part}: {ours.shape} and {theirs.shape}"
        return {part: deviation(ours, theirs) for part, (ours, theirs) in self.results.items()}


class UNetCase(NamedTuple):
    """A UNet; `attends` has an x for each level with cross-attention, a dot for one without."""

    channels: tuple
    layers: int
    groups: int
    attends: str
    heads: int | tuple
    linear: bool
    size: tuple
    others: dict = {}

    def compare(self, folder):
        cross = [mark == "x" for mark in self.attends]
        fields = {
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "norm_num_groups": self.groups,
            "down_block_types": ["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in cross],
            "up_block_types": ["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in cross[::-1]],
            "attention_head_dim": self.heads,
            "cross_attention_dim": CONTEXT[1],
            "use_linear_projection": self.linear,
            "sample_size": 8,
        }
        theirs = saved(folder, diffusers.UNet2DConditionModel, **fields | self.others)
        ours = folders.load_unet(folder)
        latents, context = normal(2, *self.size, theirs.config.in_channels), normal(2, *CONTEXT)
        timesteps = np.array([7, 891])
        with both(ours, theirs) as layers:
            expected = theirs(channels_first(latents), torch.tensor(timesteps), torch.tensor(context)).sample
            results = {"UNet": (ours(latents, timesteps, context), channels_last(expected))}
        return Comparison(results, *layers)


class AutoencoderCase(NamedTuple):
    """An autoencoder; `size` is that of the latents."""

    channels: tuple
    layers: int
    groups: int
    latents: int
    size: tuple
    others: dict = {}

    def compare(self, folder):
        levels = len(self.channels)
        fields = {
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "norm_num_groups": self.groups,
            "latent_channels": self.latents,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }
        theirs = saved(folder, diffusers.AutoencoderKL, **fields | self.others)
        ours = folders.load_autoencoder(folder)
        height, width = (side * 2 ** (levels - 1) for side in self.size)
        images = normal(2, height, width, theirs.config.in_channels)
        latents = normal(2, *self.size, self.latents)
        with both(ours, theirs) as layers:
            mean, log_variance = ours.moments(images)
            moments = theirs.encode(channels_first(images)).latent_dist
            picture = ours.decode(theirs.config.scaling_factor * latents)
            expected = theirs.decode(channels_first(latents)).sample
        results = {
            "VAE encoder, mean": (mean, channels_last(moments.mean)),
            "VAE encoder, log variance": (log_variance, channels_last(moments.logvar)),
            "VAE decoder": (picture, channels_last(expected)),
        }
        return Comparison(results, *layers)


class TextCase(NamedTuple):
    """A text tower that stands alone; `projection` is the width it projects to, 0 for none."""

    activation: str
    width: int
    layers: int
    heads: int
    tokens: int
    projection: int
    others: dict = {}

    def compare(self, folder):
        kind = transformers.CLIPTextModelWithProjection if self.projection else transformers.CLIPTextModel
        fields = text_fields(self.activation, self.width, self.layers, self.heads, self.tokens)
        config = transformers.CLIPTextConfig(**fields | self.others, projection_dim=self.projection)
        theirs = saved(folder, kind, config)
        ours, ids = clip_folders.load_text_encoder(folder), token_ids(self.tokens)
        with both(ours, theirs, "" if hasattr(theirs, "text_model") else "text_model.") as layers:
            ours(ids), theirs(torch.tensor(ids))
        return Comparison(text_results(ours, theirs, ids, self.layers), *layers)


class ImageCase(NamedTuple):
    """An image tower that stands alone; `projection` is the width it projects to, 0 for none."""

    activation: str
    width: int
    layers: int
    heads: int
    size: int
    patch: int
    projection: int

    def compare(self, folder):
        kind = transformers.CLIPVisionModelWithProjection if self.projection else transformers.CLIPVisionModel
        fields = image_fields(self.activation, self.width, self.layers, self.heads, self.size, self.patch)
        theirs = saved(folder, kind, transformers.CLIPVisionConfig(**fields, projection_dim=self.projection))
        ours, images = clip_folders.load_image_encoder(folder), normal(2, self.size, self.size, 3)
        with both(ours, theirs, "" if hasattr(theirs, "vision_model") else "vision_model.") as layers:
            results = image_results(ours(images), theirs(channels_first(images)))
        return Comparison(results, *layers)


class CLIPCase(NamedTuple):
    """Both towers with their projections; each is (width, layers, heads)."""

    activation: str
    projection: int
    text: tuple
    tokens: int
    image: tuple
    size: int
    patch: int

    def compare(self, folder):
        config = transformers.CLIPConfig(
            text_config=text_fields(self.activation, *self.text, self.tokens),
            vision_config=image_fields(self.activation, *self.image, self.size, self.patch),
            projection_dim=self.projection,
        )
        theirs = saved(folder, transformers.CLIPModel, config)
        ours, alone = clip_folders.load_clip(folder), clip_folders.load_text_encoder(folder)
        ids, images = token_ids(self.tokens), normal(2, self.size, self.size, 3)
        with both(ours, theirs) as layers:
            logits = ours(ids, images)
            expected = theirs(torch.tensor(ids), channels_first(images))
        results = {
            **text_results(alone, theirs.text_model, ids, self.text[1]),
            **image_results(ours.vision_model(images), theirs.vision_model(channels_first(images))),
            "CLIP, text features": (ours.text_features(ids), expected.text_embeds),
            "CLIP, image features": (ours.image_features(images), expected.image_embeds),
            "CLIP, logits": (logits, expected.logits_per_text),
        }
        return Comparison(results, *layers)


# Every two columns meet in most of their values. The sides of the latents are even, odd, equal and not.
# fmt: off
CASES = [
    #        channels      layers groups attends heads linear size
    UNetCase((6,),              1, 3, "x",    1,            False, (8, 8)),
    UNetCase((12,),             3, 3, ".",    2,            True,  (3, 5)),
    UNetCase((10, 15),          2, 5, "x.",   5,            False, (4, 12)),
    UNetCase((18, 9),           1, 3, "xx",   (2, 3),       True,  (7, 5), {"freq_shift": 1}),
    UNetCase((6, 12),           3, 3, ".x",   (1, 4),       False, (12, 4), {"norm_eps": 1e-3}),
    UNetCase((20, 15),          1, 5, "..",   (2, 3),       True,  (6, 10)),
    UNetCase((30, 15, 5),       1, 5, "xx.",  (6, 3, 1),    True,  (9, 6)),
    UNetCase((12, 18, 21),      1, 3, "x.x",  (4, 2, 7),    False, (5, 11)),
    UNetCase((10, 10, 25),      2, 5, ".xx",  (1, 2, 5),    True,  (8, 8)),
    UNetCase((6, 9, 12, 15),    1, 3, "xxx.", 3,            False, (8, 16)),
    UNetCase((10, 20, 15, 10),  1, 5, "xxxx", (2, 4, 3, 5), True,  (16, 24)),
    UNetCase((14, 7, 21, 7),    1, 7, "..xx", 7,            False, (9, 13)),
    UNetCase((6, 6, 6, 6),      3, 3, "....", 2,            True,  (1, 3)),
    UNetCase((10, 15), 1, 5, "xx", 5, False, (6, 8), {"in_channels": 9, "out_channels": 3}),
    UNetCase((6, 9), 2, 3, ".x", 3, False, (5, 8), {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}),
    UNetCase((9,), 1, 3, "x", 3, False, (4, 6), {"sample_size": None}),
    UNetCase((9, 15), 1, 3, "x.", 3, True, (4, 6), {"sample_size": [4, 6]}),
    #               channels   layers groups latents size
    AutoencoderCase((6,),           1, 3, 4, (8, 8)),
    AutoencoderCase((15,),          3, 5, 1, (5, 9)),
    AutoencoderCase((10, 15),       1, 5, 3, (4, 6)),
    AutoencoderCase((9, 6),         2, 3, 4, (7, 3), {"scaling_factor": 0.5}),
    AutoencoderCase((5, 10, 20),    1, 5, 8, (2, 4)),
    AutoencoderCase((12, 9, 15),    3, 3, 4, (5, 3)),
    AutoencoderCase((3, 6, 9, 12),  2, 3, 4, (2, 3), {"in_channels": 1, "out_channels": 1}),
    AutoencoderCase((21, 7, 28, 14), 1, 7, 5, (3, 2)),
    #        activation   width layers heads tokens projection
    TextCase("gelu",       15, 1, 1, 7,  0),
    TextCase("gelu",       21, 2, 3, 12, 5, {"eos_token_id": 2}),
    TextCase("quick_gelu", 15, 3, 5, 9,  0, {"layer_norm_eps": 1e-3}),
    TextCase("quick_gelu", 14, 4, 7, 16, 9),
    #         activation   width layers heads size patch projection
    ImageCase("gelu",       10, 3, 2, 12, 3, 0),
    ImageCase("quick_gelu", 15, 1, 3, 14, 4, 6),
    #        activation projection text tokens image size patch
    CLIPCase("gelu",       7,  (9, 1, 3),  8,  (10, 1, 5), 12, 4),
    CLIPCase("gelu",       16, (20, 3, 5), 11, (15, 2, 1), 15, 5),
    CLIPCase("quick_gelu", 5,  (12, 2, 1), 7,  (21, 3, 7), 9,  3),
    CLIPCase("quick_gelu", 10, (14, 4, 2), 16, (6, 4, 3),  20, 6),
]
# fmt: on


def saved(folder, kind, *args, **fields):
    """A random module and its files. There is noise on every parameter, as many start at zero or one."""
    torch.manual_seed(0)
    module = kind(*args, **fields)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    module.save_pretrained(folder)
    return module.eval().requires_grad_(False)


@contextlib.contextmanager
def both(ours, theirs, prefix=""):
    """Within the block, what the layers of both sides say."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at these sizes threads only wait for each other
    try:
        with recording(ours) as mine, recording_torch(theirs, prefix) as reference:
            yield mine, reference
    finally:
        torch.set_num_threads(threads)


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype("float32")


def channels_first(array):
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def channels_last(tensor):
    return tensor.permute(0, 2, 3, 1)


def tower_fields(activation, width, layers, heads):
    return {
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": 2 * width + 1,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def text_fields(activation, width, layers, heads, tokens):
    return {
        **tower_fields(activation, width, layers, heads),
        "vocab_size": WORDS,
        "max_position_embeddings": tokens,
        "bos_token_id": WORDS - 2,
        "eos_token_id": WORDS - 1,
        "pad_token_id": WORDS - 1,
    }


def image_fields(activation, width, layers, heads, size, patch):
    return {
        **tower_fields(activation, width, layers, heads),
        "image_size": size,
        "patch_size": patch,
    }


def token_ids(tokens, rows=3):
    """Random words, each row ended at a place of its own and filled with the end token."""
    ids = np.random.default_rng(0).integers(3, WORDS - 2, (rows, tokens))
    ids[:, 0] = WORDS - 2
    for i, row in enumerate(ids):
        row[tokens - 1 - 2 * i :] = WORDS - 1
    return ids


def text_results(ours, theirs, ids, layers):
    """The states behind the last layer and, as diffusers' `clip_skip` has them, behind the one before."""
    last, expected = ours(ids), theirs(torch.tensor(ids), output_hidden_states=True)
    results = {"text tower, last": (last.last_hidden_state, expected.last_hidden_state)} | pooled_results(
        "text", last.pooled, expected
    )
    if layers > 1:
        norm = getattr(theirs, "text_model", theirs).final_layer_norm
        penultimate = ours(ids, layer=-2).last_hidden_state
        results["text tower, penultimate"] = (penultimate, norm(expected.hidden_states[-2]))
    return results


def image_results(seen, expected):
    return {"image tower, last": (seen.last_hidden_state, expected.last_hidden_state)} | pooled_results(
        "image", seen.pooled, expected
    )


def pooled_results(tower, pooled, expected):
    """Our towers with a projection have it behind their pooled state; transformers' under another name."""
    if "pooler_output" in expected:
        return {f"{tower} tower, pooled": (pooled, expected.pooler_output)}
    return {f"{tower} tower, projected": (pooled, expected[f"{tower}_embeds"])}


def described(case):
    """'UNet, channels 6 12, layers 1, …'."""
    fields = case._asdict()
    fields |= fields.pop("others", {})
    for name, value in fields.items():
        if isinstance(value, (tuple, list)):
            fields[name] = ("x" if name == "size" else " ").join(map(str, value))
    kind = type(case).__name__.removesuffix("Case")
    return ", ".join([kind, *(f"{name} {value}" for name, value in fields.items())])


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis -1")  # of one position, where so small
@pytest.mark.parametrize("case", CASES, ids=described)
def test_agrees_with_diffusers_and_transformers(case, tmp_path):
    comparison = case.compare(tmp_path)
    wrong = [f"{part} by {x:.1e}" for part, x in comparison.differences().items() if x > TOLERANCE]
    layer = first_divergence(comparison.ours, comparison.theirs, TOLERANCE)
    if wrong or layer:
        blame = layer or "all layers agree, not what is made of them"
        pytest.fail(f"{blame}; results that differ: {', '.join(wrong) or 'none'}")


def test_a_difference_is_reported_with_the_layer_it_begins_in(tmp_path, monkeypatch):
    def load_spoilt(folder, load=folders.load_unet):
        unet = load(folder)
        unet.mid_block.resnets[1].conv2.bias.assign_add(np.arange(6.0))
        return unet

    monkeypatch.setattr(folders, "load_unet", load_spoilt)
    with pytest.raises(pytest.fail.Exception, match=r"^mid_block.resnets.1.conv2 differs by .*: UNet by \d"):
        test_agrees_with_diffusers_and_transformers(CASES[0], tmp_path)


def print_table():
    """A line for each part of each configuration, and the largest difference of each part."""
    transformers.utils.logging.disable_progress_bar()
    largest = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            differences = case.compare(folder).differences()
        for part, difference in differences.items():
            print(f"{difference:8.1e}  {part:35}  {described(case)}", flush=True)
            largest[part] = max(largest.get(part, 0), difference)
    print("\nlargest")
    for part, difference in largest.items():
        print(f"{difference:8.1e}  {part}")


if __name__ == "__main__":
    print_table()
