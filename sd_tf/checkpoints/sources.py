"""Where models come from: a bundled name, a folder, the hub; and the links in them that are not followed."""

import contextlib
import hashlib
import os
import re
from fnmatch import fnmatch
from pathlib import Path

from sd_tf.checkpoints.weight_files import STEMS, weight_files
from sd_tf.errors import InputError, unknown
from sd_tf.files import is_inside, open_file, reason

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
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def bundled_names(kind: str | None = None) -> list[str]:
    """The names that need no path; of one of `KINDS`, or all."""
    files = "*/*.json" if kind is None else KINDS[kind]
    return sorted({path.parent.name for path in BUNDLED.glob(files)})


def is_on_disk(name_or_folder) -> bool:
    """Whether it is a bundled name or a path of something, and so no hub id."""
    name = str(name_or_folder)
    return name in bundled_names() or os.path.exists(os.path.expanduser(name))


def resolve(
    name_or_folder,
    revision: str | None = None,
    variant: str | None = None,
    kind: str = "model",
    parts: tuple[str, ...] = PARTS,
) -> Path:
    """A bundled name, a path or a hub id -> the folder, or the file where a path names one.

    Args:
        name_or_folder: looked for in this order.
        revision: branch, tag or commit of a model on the hub.
        variant: of the weights to download.
        kind: one of `KINDS`: what an error calls it, and which bundled names it suggests.
        parts: those of a whole model whose weights are downloaded.

    Raises:
        InputError: it is none of these, or the hub cannot be reached.
    """
    name = str(name_or_folder)
    if name in bundled_names():
        return BUNDLED / name
    path = Path(os.path.expanduser(name))
    if os.path.exists(path):  # of a name that is none, too, such as one of 300 characters
        return path
    if HUB_ID.fullmatch(name) and path.suffix != ".safetensors":
        return _download(name, revision, variant, parts)
    if os.sep in name or name.startswith(".") or path.suffix:
        raise InputError(
            f"no file or folder {name!r}: train a model with python -m sd_tf.train, or name another"
        )
    raise unknown(kind, name, [*bundled_names(kind), "a folder that holds one", "a hub id owner/name"])


def _download(hub_id, revision, variant, parts) -> Path:
    """Configurations and safetensors files of a model, into the hub's own cache.

    `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE` and the rest mean what they mean to huggingface_hub. A
    pipeline's repository often holds every precision and the original checkpoint besides: only the
    variant that is asked for is fetched, and of parts that lack it the plain files.
    """
    import huggingface_hub  # only here: it is slow to import, and most models are on disk

    def fetch(patterns):
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=patterns))

    stems = ("diffusion_pytorch_model", "model")
    plain = [name for stem in stems for name in (f"{stem}.safetensors", f"{stem}-*-of-*.safetensors")]
    of_variant = [
        name
        for stem in stems
        for name in (f"{stem}.{variant}.safetensors", f"{stem}.{variant}-*-of-*.safetensors")
    ]
    sizes, asked = _sizes_on_hub(hub_id, revision), []

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


def _sizes_on_hub(hub_id, revision) -> dict[str, int]:
    """Bytes of a model's files; none where the hub cannot be asked, such as for what is in its cache."""
    import huggingface_hub

    try:
        files = list(huggingface_hub.HfApi().list_repo_tree(hub_id, recursive=True, revision=revision))
    except Exception:  # what is wrong, the download says
        return {}
    return {file.path: file.size for file in files if isinstance(getattr(file, "size", None), int)}


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
            f"had ({reason}): check the path; or, of a hub id, the name and the network"
        ) from None


def weights_sha256(folder, variant: str | None = None) -> str:
    """Of the weights that a load would read, of a whole model or of one part, or of one file.

    Args:
        folder: a folder or file.
        variant: of the files that the load would prefer.

    Raises:
        InputError: a file is none that can be read, or they are larger than any model that is supported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        files, root = [folder], None
    else:
        parts = [(folder / part, stem) for part, stem in STEMS.items()]
        parts += [(folder, stem) for stem in dict.fromkeys(STEMS.values())]
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
