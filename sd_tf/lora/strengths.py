"""How strong an adaptation is: alpha and rank, where they stand in no tensor but in peft's configuration.

diffusers writes peft's configuration into the header of the safetensors file, peft itself into
`adapter_config.json` beside it. kohya's files have alpha as a tensor and need neither.
"""

import math
import re
from typing import NamedTuple

from sd_tf.checkpoints.header import read_header
from sd_tf.errors import InputError, shown
from sd_tf.files import parse_json, read_json

CONFIG = "adapter_config.json"
MOST_PATTERNS = 5000  # each is held against every layer's name
NETWORKS = ("unet", "text_encoder")
_METADATA = "lora_adapter_metadata"  # where diffusers writes it
_PATTERN = re.compile(r"\^?[\w.]+", re.ASCII)
_KINDS = ("LORA", "LOHA", "LOKR")
# Other initialisations, such as PiSSA's, change the model's own kernels, and the file has only the rest.
_INITIALISATIONS = ("gaussian", "eva", "orthogonal", "lycoris")


class Strength(NamedTuple):
    """What a peft configuration says of how much the changes of a network are."""

    alpha: float | None = None  # None: the rank
    rank: float | None = None
    alpha_pattern: dict = {}  # ends of layers' names, whole ones after ^ -> their own; the first that fits
    rank_pattern: dict = {}
    use_rslora: bool = False

    def scale(self, layer: str, rank: int | None) -> float:
        """alpha / rank or, stabilised, alpha / sqrt(rank) (Kalajdzievski 2023).

        Args:
            layer: its name in the network.
            rank: of its tensors; None where they have none, such as a LoKr of two whole matrices.
        """
        if rank is None:
            rank = _own(self.rank_pattern, layer, self.rank)
        alpha = _own(self.alpha_pattern, layer, self.alpha)
        if rank is None or alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_strengths(file, root, is_peft: bool) -> dict[str, Strength]:
    """ "unet" and "text_encoder" -> `Strength`, where the file or the one beside it says them.

    Args:
        file: a safetensors file.
        root: folder that it must lie in, see `sd_tf.files.open_file`.
        is_peft: whether peft has written it, with a configuration beside it.

    Raises:
        InputError: the configuration is missing, damaged, or of a kind that cannot be read.
    """
    text = read_header(file, root).metadata.get(_METADATA)
    if text is not None:
        source, writer = f"its {_METADATA}", "diffusers"
        try:
            values = parse_json(text, _METADATA)
        except (ValueError, RecursionError):
            raise _unreadable(file, source, text, writer) from None
    elif is_peft:
        source, writer, config = f"its {CONFIG}", "peft", file.parent / CONFIG
        if not config.exists():
            raise InputError(
                f"{file} is in peft's layout, and {CONFIG}, which says its alpha and rank, is missing beside "
                "it: copy both"
            )
        text = values = read_json(config, file.parent)
    else:
        return {}
    try:
        strengths = {network: _strength(_values_of(network, values)) for network in NETWORKS}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{file}: {source}: {error.message}") from None
        raise _unreadable(file, source, text, writer) from None
    return {network: strength for network, strength in strengths.items() if strength is not None}


def _unreadable(file, source, text, writer):
    return InputError(f"{file}: {source} is {shown(text)}, which is not what {writer} writes")


def _values_of(network, values):
    """The configuration of one network: diffusers writes both into one object, with prefixes."""
    prefix = f"{network}."
    own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    both = {name: value for name, value in values.items() if not name.startswith(NETWORKS)}
    return own or both


def _strength(values):
    if not values:
        return None
    kind = values.get("peft_type") or "LORA"
    if kind not in _KINDS:
        raise InputError(f"peft_type is {shown(kind)}: only {', '.join(_KINDS)} can be read")
    for name in ("init_lora_weights", "init_weights"):
        start = values.get(name)
        if isinstance(start, str) and start not in _INITIALISATIONS:
            raise InputError(
                f"{name} is {shown(start)}, which changes the model's own weights: save the adapter with "
                "path_initial_model_for_weight_conversion"
            )
    alpha = float(values.get("lora_alpha", values.get("alpha", 8)))  # 8 as peft has it
    rank, ranks = float(values.get("r", 8)), _pattern(values, "rank_pattern")
    for each in (rank, *ranks.values()):
        if not 0 < each < math.inf:
            raise InputError(f"its rank is {each:g}, which is no number of rows")
    return Strength(alpha, rank, _pattern(values, "alpha_pattern"), ranks, bool(values.get("use_rslora")))


def _pattern(values, name):
    pattern = {end: float(own) for end, own in (values.get(name) or {}).items()}
    if len(pattern) > MOST_PATTERNS:
        raise InputError(f"{name} has {len(pattern)} entries, {MOST_PATTERNS} are the most")
    for end in pattern:
        if not _PATTERN.fullmatch(end):  # a stranger's regular expression may take forever
            raise InputError(
                f"{name} has {shown(end)}: only ends of layers' names are read, write those that it means"
            )
    return pattern


def _own(pattern, layer, default):
    """The value of the first end that a layer's name has."""
    whole = f"^{layer}", f"^{layer.removeprefix('text_model.')}"
    return next(
        (own for end, own in pattern.items() if end in whole or f".{layer}".endswith(f".{end}")), default
    )
