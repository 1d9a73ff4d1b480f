"""Folders of text encoders: transformers' open here, ours open there, and damaged ones are named."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sd_tf.checkpoints.text_encoders import open_text_encoder, save_text_encoder_folders
from sd_tf.checkpoints.tokenizers import text_length
from sd_tf.errors import LONGEST, InputError
from sd_tf.text.encoder import BertTextEncoder, CLIPTextEncoder, T5TextEncoder
from sd_tf.text.tokenizer import Tokenizer
from tests.fuzzing import limited
from tests.parity import deviation
from tests.text.vocabularies import bert_vocab, spiece, t5_pieces

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parent.parent.parent
WEIGHTS, CONFIG = "model.safetensors", "config.json"
TOKENIZER_CONFIG = "tokenizer/tokenizer_config.json"
TEXTS = ["a red dress", "", "two ankle boots, naïve"]
T5 = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 512}
BERT = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    **{"max_position_embeddings": 40, "vocab_size": 512},
}
KINDS = {
    "T5 1.0": ("T5EncoderModel", T5),
    "T5 1.1": ("T5EncoderModel", {**T5, "feed_forward_proj": "gated-gelu", "num_heads": 3}),
    "whole T5": ("T5ForConditionalGeneration", T5),
    "BERT": ("BertModel", BERT),
    "BERT of masked words": ("BertForMaskedLM", BERT),
    "CLIP": ("CLIPTextModel", {}),
}


def clip_values(tokenizer):
    return {
        **{"hidden_size": 16, "intermediate_size": 24, "projection_dim": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "max_position_embeddings": 12, "vocab_size": tokenizer.vocab_size},
        **{"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id},
    }


def write_theirs(kind, folder):
    """A folder that transformers has written, weights, configuration and tokenizer; and its network."""
    name, values = KINDS[kind]
    torch.manual_seed(0)
    if name.startswith("T5"):
        tokenizer, config = transformers.T5Tokenizer(vocab=t5_pieces()), transformers.T5Config(**values)
    elif name.startswith("Bert"):
        tokenizer, config = transformers.BertTokenizer(vocab=bert_vocab()), transformers.BertConfig(**values)
    else:
        own = Tokenizer.learn(["a red dress", "a blue bag"] * 2, 560, 12)
        own.save(folder)
        tokenizer, config = None, transformers.CLIPTextConfig(**clip_values(own))
    network = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    network.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return network


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> (folder, network), each written once."""
    root, made = tmp_path_factory.mktemp("theirs"), {}

    def folder_of(kind):
        if kind not in made:
            folder = root / kind.replace(" ", "-")
            made[kind] = (folder, write_theirs(kind, folder))
        return made[kind]

    return folder_of


@pytest.fixture
def copy_of(folders, tmp_path):
    """A copy of a kind's folder, to be changed."""

    def copy(kind):
        shutil.copytree(folders(kind)[0], tmp_path / "copy")
        return tmp_path / "copy"

    return copy


def states_of(network, encoder, ids, mask):
    part = {"T5ForConditionalGeneration": "encoder", "BertForMaskedLM": "bert"}.get(type(network).__name__)
    network = getattr(network, part) if part else network
    with torch.no_grad():
        output = network(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())
    return output.last_hidden_state.numpy()


def change(file, **values):
    known = json.loads(file.read_text("utf-8"))
    known.update(values)
    file.write_text(json.dumps(known), "utf-8")


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_writes_opens_here_without_warnings(kind, folders):
    folder, network = folders(kind)
    encoder = open_text_encoder(folder)
    classes = {"T": T5TextEncoder, "w": T5TextEncoder, "B": BertTextEncoder, "C": CLIPTextEncoder}
    assert type(encoder) is classes[kind[0]]
    assert encoder.length == {"T": 77, "w": 77, "B": 40, "C": 12}[kind[0]]
    ids, mask = encoder.tokenize(TEXTS[:2])
    found = np.asarray(encoder.encode(ids, mask).states)
    assert found.shape == (2, encoder.length, encoder.width)
    assert deviation(found[mask], states_of(network, encoder, ids, mask)[mask]) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_here_opens_in_transformers_bit_by_bit(kind, folders, tmp_path):
    folder, network = folders(kind)
    encoder = open_text_encoder(folder)
    save_text_encoder_folders(encoder, tmp_path)
    name = {"T": "T5EncoderModel", "w": "T5EncoderModel", "B": "BertModel", "C": "CLIPTextModel"}[kind[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind_of = getattr(transformers, name)
        opened, report = kind_of.from_pretrained(tmp_path / "text_encoder", output_loading_info=True)
    pooler = {"pooler.dense.weight", "pooler.dense.bias"} if kind == "BERT of masked words" else set()
    assert set(report["missing_keys"]) == pooler and not report["unexpected_keys"]
    before = {key.removeprefix("bert."): value for key, value in network.state_dict().items()}
    state = opened.state_dict()
    for key in state.keys() - pooler:
        assert torch.equal(state[key], before[key]), key
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    found = words(TEXTS, padding="max_length", truncation=True, max_length=encoder.length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(encoder.tokenize(TEXTS)[0], found.input_ids)
    again = open_text_encoder(tmp_path)
    assert again.fingerprint == open_text_encoder(tmp_path / "text_encoder").fingerprint
    assert again.length == encoder.length or kind == "CLIP"
    assert again.config == encoder.config and again.fingerprint == encoder.fingerprint


def test_opening_reads_no_weights_and_imports_no_keras(folders):
    folder, _ = folders("T5 1.0")
    program = (
        "import sys\nfrom sd_tf.checkpoints.text_encoders import open_text_encoder\n"
        f"encoder = open_text_encoder({str(folder)!r})\nencoder.tokenize(['a dress'])\n"
        "heavy = {'keras', 'tensorflow', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=environment)


def test_missing_weights_are_said_when_something_is_encoded(copy_of):
    folder = copy_of("BERT")
    (folder / WEIGHTS).unlink()
    encoder = open_text_encoder(folder)
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        encoder.encode(*encoder.tokenize(["a dress"]))


@pytest.mark.parametrize("kind", ["T5 1.1", "BERT"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_files_in_half_precision_are_read(kind, dtype, copy_of):
    folder = copy_of(kind)
    values = load_file(folder / WEIGHTS)
    save_file({key: value.astype(dtype) for key, value in values.items()}, folder / WEIGHTS)
    encoder = open_text_encoder(folder, dtype="float32")
    network = getattr(transformers, KINDS[kind][0]).from_pretrained(folder, dtype=torch.float32).eval()
    ids, mask = encoder.tokenize(TEXTS[:2])
    found = np.asarray(encoder.encode(ids, mask).states)
    assert deviation(found[mask], states_of(network, encoder, ids, mask)[mask]) < 1e-4


@pytest.mark.parametrize("kind", ["T5 1.0", "BERT", "CLIP"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_written_and_computed_in(kind, dtype, folders, tmp_path):
    encoder = open_text_encoder(folders(kind)[0])
    save_text_encoder_folders(encoder, tmp_path, dtype, max_shard_size="9KB")
    assert (tmp_path / "text_encoder" / "model.safetensors.index.json").is_file()  # and in shards
    half = open_text_encoder(tmp_path, dtype=f"mixed_{dtype}")
    ids, mask = encoder.tokenize(TEXTS[:2])
    found, expected = (np.asarray(each.encode(ids, mask).states, "float32") for each in (half, encoder))
    assert deviation(found[mask], expected[mask]) < (0.02 if dtype == "float16" else 0.2)


def test_shards_of_transformers_are_read(folders, tmp_path):
    folder, network = folders("T5 1.0")
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / WEIGHTS).unlink()
    network.save_pretrained(tmp_path / "copy", max_shard_size="20KB")
    assert not (tmp_path / "copy" / WEIGHTS).exists()
    assert open_text_encoder(tmp_path / "copy").fingerprint == open_text_encoder(folder).fingerprint


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("keep", ["shared", "embed_tokens", "both"])
def test_the_embedding_of_t5_may_have_either_name_or_both(keep, folders, copy_of):
    folder = copy_of("T5 1.0")
    values = load_file(folder / WEIGHTS)
    values.setdefault("shared.weight", values.pop("encoder.embed_tokens.weight", None))
    second = {"encoder.embed_tokens.weight": values["shared.weight"].copy()}
    if keep == "embed_tokens":
        del values["shared.weight"]
    save_file(values | (second if keep != "shared" else {}), folder / WEIGHTS)
    assert open_text_encoder(folder).fingerprint == open_text_encoder(folders("T5 1.0")[0]).fingerprint


def test_two_embeddings_of_t5_have_one_shape(copy_of):
    folder = copy_of("T5 1.0")
    values = load_file(folder / WEIGHTS) | {"encoder.embed_tokens.weight": np.ones((3, 16), "float32")}
    save_file(values, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"has shape \(3, 16\), shared.weight \(512, 16\): they are one"):
        open_text_encoder(folder).encode(np.zeros((1, 77), "int32"), np.ones((1, 77), bool))


@pytest.mark.filterwarnings("error::UserWarning")
def test_old_names_of_bert_are_read(folders, copy_of):
    folder = copy_of("BERT")
    old = {"weight": "gamma", "bias": "beta"}
    values = {}
    for key, value in load_file(folder / WEIGHTS).items():
        module, _, last = key.rpartition(".")
        values[f"bert.{module}.{old[last] if module.endswith('LayerNorm') else last}"] = value
    values["bert.embeddings.position_ids"] = np.arange(40)[np.newaxis]
    values["cls.seq_relationship.weight"] = np.ones((2, 16), "float32")
    save_file(values, folder / WEIGHTS)
    assert open_text_encoder(folder).fingerprint == open_text_encoder(folders("BERT")[0]).fingerprint
    save_file(values | {"bert.embeddings.LayerNorm.weight": np.ones(16, "float32")}, folder / WEIGHTS)
    with pytest.raises(InputError, match="are both embeddings.LayerNorm.weight"):
        _ = open_text_encoder(folder).fingerprint


def test_a_sentencepiece_model_alone_is_a_tokenizer(copy_of, folders):
    folder = copy_of("T5 1.0")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    (folder / "spiece.model").write_bytes(spiece(t5_pieces()))
    ids, mask = open_text_encoder(folder).tokenize(TEXTS)
    expected = open_text_encoder(folders("T5 1.0")[0]).tokenize(TEXTS)
    np.testing.assert_array_equal(ids, expected[0])


def test_a_configuration_without_model_type_is_told_by_its_class(copy_of):
    folder = copy_of("T5 1.0")
    values = json.loads((folder / CONFIG).read_text())
    del values["model_type"]
    values["architectures"] = ["T5WithLMHeadModel"]
    (folder / CONFIG).write_text(json.dumps(values))
    assert type(open_text_encoder(folder)) is T5TextEncoder


@pytest.mark.parametrize("length", [5, 20])
def test_the_length_is_an_argument(length, folders):
    for kind in ("T5 1.0", "BERT"):
        encoder = open_text_encoder(folders(kind)[0], length=length)
        assert encoder.length == length and encoder.tokenize(["a"])[0].shape == (1, length)


@pytest.mark.parametrize(
    ("said", "length"),
    [
        ({}, None),
        ({"model_max_length": None}, None),
        ({"model_max_length": 1000000000000000019884624838656}, None),  # of transformers: no limit
        ({"model_max_length": 1e30}, None),
        ({"model_max_length": 20}, 20),
        ({"model_max_length": 512}, 512),
        ({"model_max_length": 1024}, 1024),
    ],
)
def test_the_length_of_a_whole_model_is_what_its_tokenizer_says(said, length, tmp_path):
    assert text_length(tmp_path) is None
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / TOKENIZER_CONFIG).write_text(json.dumps(said))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text_length(tmp_path) == length


def test_a_length_of_a_whole_model_that_is_not_followed_is_said(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / TOKENIZER_CONFIG).write_text('{"model_max_length": 4096}')
    with pytest.warns(UserWarning, match="tokenizer_config.json: model_max_length is 4,096, .* at most 1024"):
        assert text_length(tmp_path) is None
    for wrong in ("77", 3, -1, True, 20.5, [20], float("nan")):
        (tmp_path / TOKENIZER_CONFIG).write_text(json.dumps({"model_max_length": wrong}))
        with pytest.raises(InputError, match="tokenizer_config.json: model_max_length is .*, expected 4 to"):
            text_length(tmp_path)


# -- sentence-transformers ----------------------------------------------------------------------------

OLD_MODES = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]


def write_modules(folder, pooling, modules=("models.Transformer", "models.Pooling")):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / CONFIG).write_text(json.dumps(pooling))
    modules = [{"idx": i, "path": "", "type": f"sentence_transformers.{m}"} for i, m in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({f"pooling_mode_{mode}": mode == "mean_tokens" for mode in OLD_MODES}, "mean"),
        ({f"pooling_mode_{mode}": mode == "cls_token" for mode in OLD_MODES}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls", "embedding_dimension": 16}, "cls"),
    ],
)
def test_the_pooling_is_that_of_the_modules_and_is_written_again(pooling, expected, copy_of, tmp_path):
    folder = copy_of("BERT")
    write_modules(folder, pooling, ["models.Transformer", "models.Pooling", "models.Normalize"])
    encoder = open_text_encoder(folder)
    assert (encoder.pooling, encoder.normalize) == (expected, True)
    save_text_encoder_folders(encoder, tmp_path / "ours")
    again = open_text_encoder(tmp_path / "ours")
    assert (again.pooling, again.normalize) == (expected, True)


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": ["mean", "cls"]},
        {"pooling_mode": {"mean": 1}},
        {"pooling_mode": 3, "pooling_mode_mean_tokens": "yes"},
        {},
    ],
)
def test_another_pooling_is_refused(pooling, copy_of):
    folder = copy_of("BERT")
    write_modules(folder, pooling)
    with pytest.raises(InputError, match=r"1_Pooling.config\.json says .* only one of mean, cls"):
        open_text_encoder(folder)


@pytest.mark.parametrize("content", ["3", "{}", "[3]", '[{"type": "x.Dense"}]', "[[", '[{"type": ["x"]}]'])
def test_other_modules_are_refused(content, copy_of):
    folder = copy_of("BERT")
    (folder / "modules.json").write_text(content)
    with pytest.raises(InputError, match=r"modules\.json"):
        open_text_encoder(folder)


# -- strangers' folders -------------------------------------------------------------------------------


def use(folder):
    encoder = open_text_encoder(folder)
    return encoder.encode(*encoder.tokenize(["a dress"]))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("BERT", {"model_type": "roberta"}, "unknown model_type 'roberta'"),
        ("BERT", {"model_type": ["bert"]}, "unknown model_type"),
        ("BERT", {"model_type": None, "architectures": [{"a": 1}]}, "not CLIP, T5 or BERT"),
        ("BERT", {"model_type": None, "architectures": []}, "unknown model_type 'None'"),
        ("BERT", {"hidden_size": 32}, "configuration wants"),
        ("BERT", {"hidden_size": 2**40}, "hidden_size is 1099511627776"),
        ("BERT", {"hidden_size": "16"}, "hidden_size is '16'"),
        ("BERT", {"hidden_size": [16]}, "hidden_size is"),
        ("BERT", {"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ("BERT", {"num_hidden_layers": 3}, "missing"),
        ("BERT", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("BERT", {"num_attention_heads": 3}, "3 heads do not divide the width 16"),
        ("BERT", {"num_attention_heads": 0}, "num_attention_heads is 0"),
        ("BERT", {"layer_norm_eps": 0}, "layer_norm_eps is 0"),
        ("BERT", {"layer_norm_eps": {"a": []}}, "layer_norm_eps is"),
        ("BERT", {"vocab_size": 10}, "take the tokenizer that it was trained with"),
        ("BERT", {"vocab_size": 2**31 - 1}, "configuration wants"),
        ("BERT", {"type_vocab_size": 2**30}, "configuration wants"),
        ("BERT", {"max_position_embeddings": 2000}, "max_position_embeddings is 2000"),
        ("BERT", {"max_position_embeddings": 1}, "max_length 1 is not"),
        ("BERT", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("BERT", {"is_decoder": True}, "is_decoder is True"),
        ("BERT", {"hidden_act": "swish"}, "unknown activation 'swish'"),
        ("T5 1.0", {"d_model": 17}, "configuration wants"),
        ("T5 1.0", {"d_kv": 2**31 - 1, "num_heads": 1024}, "configuration wants|no network"),
        ("T5 1.0", {"d_ff": True}, "d_ff is True"),
        ("T5 1.0", {"d_ff": 1.5}, "d_ff is 1.5"),
        ("T5 1.0", {"num_layers": 10**9}, "num_layers is 1000000000"),
        ("T5 1.0", {"num_layers": None}, "num_layers is None"),
        ("T5 1.0", {"num_heads": 3}, "configuration wants"),
        ("T5 1.0", {"num_heads": 5000}, "num_heads is 5000"),
        ("T5 1.0", {"feed_forward_proj": "gated-gelu"}, "missing"),
        ("T5 1.0", {"feed_forward_proj": "gated-x"}, "unknown feed_forward_proj"),
        ("T5 1.0", {"feed_forward_proj": {}}, "feed_forward_proj is"),
        ("T5 1.0", {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets is 2"),
        ("T5 1.0", {"relative_attention_num_buckets": 2**31 - 1}, "relative_attention_max_distance 128"),
        (
            "T5 1.0",
            {"relative_attention_max_distance": 10**9},
            "relative_attention_max_distance is 1000000000",
        ),
        ("T5 1.0", {"layer_norm_epsilon": 1e-300}, "layer_norm_epsilon is 1e-300"),
        ("T5 1.0", {"layer_norm_epsilon": "nan"}, "layer_norm_epsilon is 'nan'"),
        ("CLIP", {"text_config": 3}, "expected an object"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(kind, values, message, copy_of):
    folder = copy_of(kind)
    change(folder / CONFIG, **values)
    with limited(), pytest.raises(InputError, match=message) as refused:
        use(folder)
    assert str(folder) in str(refused.value) or "max_length" in message
    assert "\n" not in str(refused.value) and len(str(refused.value)) <= LONGEST + 1


@pytest.mark.parametrize("kind", ["T5 1.0", "BERT"])
@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "nested", "a list", "a link out", "a folder"])
def test_a_damaged_file_is_refused_in_one_line(kind, file, damage, copy_of, tmp_path):
    folder = copy_of(kind)
    path, content = folder / file, (folder / file).read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "a link out":
        (tmp_path / "secret").write_bytes(content)
        path.symlink_to(tmp_path / "secret")
    elif damage != "gone":
        content = {"empty": b"", "cut": content[: len(content) // 2], "nested": b"[" * 9999, "a list": b"[]"}[
            damage
        ]
        path.write_bytes(content)
    may_be_gone = file == "tokenizer_config.json" and damage in ("gone", "a folder")
    with limited():
        if may_be_gone:
            use(folder)
            return
        with pytest.raises(InputError) as refused:
            use(folder)
    assert "\n" not in str(refused.value)


def test_what_is_no_folder_of_a_text_encoder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in (tmp_path, tmp_path / "file", tmp_path / "nowhere", "no such name"):
        with pytest.raises(InputError):
            open_text_encoder(name)


def test_of_a_whole_model_on_the_hub_only_the_text_encoder_is_downloaded(folders, tmp_path, monkeypatch):
    import huggingface_hub

    save_text_encoder_folders(open_text_encoder(folders("T5 1.0")[0]), tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    asked = []

    def snapshot_download(hub_id, revision, allow_patterns, local_files_only=False):
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    open_text_encoder("team/model")
    assert "*spiece.model" in asked and "text_encoder/model.safetensors" in asked
    assert not [pattern for pattern in asked if pattern.startswith(("vae", "unet"))]


def test_a_tokenizer_of_another_folder_may_be_named(folders, copy_of, tmp_path):
    folder = copy_of("T5 1.0")
    (tmp_path / "words").mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).rename(tmp_path / "words" / file)
    encoder = open_text_encoder(folder, tokenizer=tmp_path / "words")
    expected = open_text_encoder(folders("T5 1.0")[0])
    assert encoder.tokenizer.fingerprint == expected.tokenizer.fingerprint
    assert dataclasses.asdict(encoder.config)["d_model"] == 16


def test_numbers_of_weights_that_are_nan_are_warned_of(copy_of):
    folder = copy_of("T5 1.0")
    values = load_file(folder / WEIGHTS)
    values["shared.weight"][0, 0] = np.nan
    save_file(values, folder / WEIGHTS)
    with pytest.warns(UserWarning, match="NaN or infinite values in 1 tensor: shared.weight"):
        use(folder)
