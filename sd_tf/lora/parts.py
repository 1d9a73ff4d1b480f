"""From the tensors of a file to changes: which kind of adaptation they are, and whether they fit each other.

A change is first built of tensors that are still in the file, whose shapes are known: what does not fit
is refused before any value is read or multiplied.
"""

import dataclasses
import math
import re

import numpy as np

from sd_tf.errors import InputError
from sd_tf.lora.adaptations import Change, LowRank
from sd_tf.lora.lycoris import Difference, DoRA, LoHa, LoKr, Tucker
from sd_tf.lora.strengths import Strength

MOST_SCALE = 10_000  # of alpha / rank; it is 1 or 2 as a rule, and far more makes pictures NaN
KINDS = {
    "LoRA": ("down", "up", "lora_mid"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "full difference": ("diff",),
}
MAGNITUDES = ("lora_magnitude_vector", "dora_scale")

_DOWN = ("lora_A", "lora_down", "lora.down", "lora_linear_layer.down", "down")
_UP = ("lora_B", "lora_up", "lora.up", "lora_linear_layer.up", "up")
_ENDINGS = {
    **{f"{name}.weight": "down" for name in _DOWN},
    **{f"{name}.weight": "up" for name in _UP},
    **{name: name for name in ("alpha", *MAGNITUDES, *KINDS["LoHa"], *KINDS["LoKr"], "diff")},
    "lora_mid.weight": "lora_mid",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "w_norm": "diff",
}
_BIASES = {"diff_b": "diff", "b_norm": "diff"}
_KEY = re.compile(rf"(.*?)\.({'|'.join(map(re.escape, [*_ENDINGS, *_BIASES]))})")


def split_key(key: str) -> tuple[str, str, str] | None:
    """A key of a file -> the layer's name in it, ".bias" or "", and the part; None for what is unknown."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    name, ending = found.groups()
    return (name, ".bias", _BIASES[ending]) if ending in _BIASES else (name, "", _ENDINGS[ending])


def build(at: str, parts: dict, wanted: tuple[int, ...], scale: float = 1.0) -> Change:
    """The change of a weight.

    Args:
        at: file and weight, for error messages.
        parts: part, as in `KINDS` -> array, or an object with its `shape`.
        wanted: shape of the weight.
        scale: what its product is multiplied by.

    Raises:
        InputError: parts are missing, left over, or do not fit each other.
    """
    kinds = [kind for kind, own in KINDS.items() if not parts.keys().isdisjoint(own)]
    if len(kinds) != 1:
        mixed = f"mixes {' and '.join(kinds)}" if kinds else f"has {' and '.join(parts)} only"
        raise InputError(f"{at} {mixed}: it is damaged")
    if kinds == ["full difference"]:
        if len(parts) > 1:
            raise InputError(f"{at} has {' and '.join(parts)}, of which only diff can be read: it is damaged")
        return Difference(parts["diff"])
    change = {"LoRA": _lora, "LoHa": _loha, "LoKr": _lokr}[kinds[0]](at, parts, scale)
    return _dora(at, change, parts, wanted)


def read_change(at: str, parts: dict, wanted: tuple[int, ...], layer: str, strength: Strength) -> Change:
    """Reads a change whose shapes `build` has checked.

    Args:
        at, wanted: see `build`.
        parts: part -> `Tensor`.
        layer: name of the weight in its network.
        strength: what a configuration says of its scale, if `parts` do not.

    Raises:
        InputError: values are not finite, or alpha is no sensible number.
    """
    change = build(at, parts, wanted)
    scale = _scale(at, parts, change, layer, strength)
    values = {part: tensor.read().astype(np.float32) for part, tensor in parts.items() if part != "alpha"}
    if not all(np.isfinite(each).all() for each in (scale, *values.values())):
        raise InputError(f"{at} has values that are not finite")
    if abs(scale) > MOST_SCALE:
        raise InputError(f"{at} is multiplied by {scale:g}, {MOST_SCALE} is the most: its alpha is wrong")
    return build(at, values, wanted, scale)


def transposed_factors(parts: dict) -> dict:
    """LyCORIS and peft store the outputs' matrix of a Tucker form as (rank, outputs): here it is turned."""
    turned = dict(parts)
    for core, matrix in (("hada_t1", "hada_w1_a"), ("hada_t2", "hada_w2_a"), ("lokr_t2", "lokr_w2_a")):
        if core in parts and matrix in parts:
            tensor = parts[matrix]
            turned[matrix] = dataclasses.replace(tensor, shape=tensor.shape[::-1], view=np.transpose)
    return turned


def _scale(at, parts, change, layer, strength):
    """alpha / rank."""
    if isinstance(change, Difference):
        return 1.0
    if "alpha" not in parts:
        return strength.scale(layer, change.rank)
    shape = parts["alpha"].shape
    if math.prod(shape) != 1:
        raise InputError(f"{at}: its alpha is {shape}, not one number: it is damaged")
    alpha = float(parts["alpha"].read().item())
    return 1.0 if change.rank is None else alpha / change.rank  # a LoKr of whole matrices ignores its alpha


def _lora(at, parts, scale):
    _need(at, parts, "down", "up")
    if "lora_mid" in parts:
        return _tucker(at, parts["lora_mid"], parts["down"], parts["up"], scale)
    return _low_rank(at, parts["down"], parts["up"], scale)


def _loha(at, parts, scale):
    _need(at, parts, *KINDS["LoHa"][:4])
    if "hada_t1" in parts or "hada_t2" in parts:
        _need(at, parts, "hada_t1", "hada_t2")
    halves = [_product(at, parts, f"hada_w{i}", f"hada_t{i}") for i in (1, 2)]
    if halves[0].shape != halves[1].shape or halves[0].rank != halves[1].rank:
        raise InputError(
            f"{at} is {halves[0].shape} of rank {halves[0].rank} times {halves[1].shape} of rank "
            f"{halves[1].rank}, which are no halves of a LoHa"
        )
    return LoHa(*halves, scale)


def _lokr(at, parts, scale):
    first, second = (_whole_or_product(at, parts, f"lokr_w{i}", f"lokr_t{i}") for i in (1, 2))
    if len(first.shape) != 2 or len(second.shape) not in (2, 4):
        raise InputError(f"{at} is {first.shape} and {second.shape}, which are no factors of a LoKr")
    if None not in (first.rank, second.rank) and first.rank != second.rank:
        raise InputError(f"{at} has factors of rank {first.rank} and {second.rank}: it is damaged")
    return LoKr(first, second, scale)


def _whole_or_product(at, parts, name, core):
    if name not in parts:
        return _product(at, parts, name, core)
    others = [part for part in (f"{name}_a", f"{name}_b", core) if part in parts]
    if others:
        raise InputError(f"{at} has both {name} and {others[0]}: it is damaged")
    return Difference(parts[name])


def _product(at, parts, name, core):
    """The product of the matrices _a and _b, with a core between them if there is one."""
    _need(at, parts, f"{name}_a", f"{name}_b")
    up, down = parts[f"{name}_a"], parts[f"{name}_b"]
    return _tucker(at, parts[core], down, up) if core in parts else _low_rank(at, down, up)


def _dora(at, change, parts, wanted):
    """The change with the norms that the file has for it, if any."""
    found = [part for part in MAGNITUDES if part in parts]
    if not found:
        return change
    magnitude = parts[found[0]]
    # peft writes one number for each output, LyCORIS (outputs, 1, ...) or (1, inputs, ...).
    axis = 1 if found[0] == "dora_scale" and magnitude.shape[:1] != wanted[:1] else 0
    fits = len(wanted) > 1 and math.prod(magnitude.shape) == wanted[axis]
    if len(found) > 1 or not fits:
        raise InputError(
            f"{at} has {' and '.join(found)} of shape {magnitude.shape}: one number for each output of a "
            f"kernel {wanted} is expected or, in LyCORIS' layout, for each input"
        )
    return DoRA(change, magnitude, axis)


def _need(at, parts, *names):
    missing = [name for name in names if name not in parts]
    if missing:
        raise InputError(f"{at} has {' and '.join(parts)}, but no {' and '.join(missing)}: it is damaged")


def _low_rank(at, down, up, scale=1.0):
    rank = down.shape[0] if len(down.shape) in (2, 4) else 0
    if not rank or up.shape[1:2] != (rank,) or math.prod(up.shape) != up.shape[0] * rank:
        raise InputError(f"{at} is {up.shape} times {down.shape}, which is no product of low rank")
    return LowRank(down, up, scale)


def _tucker(at, core, down, up, scale=1.0):
    rank = core.shape[0] if len(core.shape) == 4 else 0
    fits = rank and core.shape[1] == rank and down.shape[:1] == (rank,) and up.shape[1:2] == (rank,)
    flat = fits and all(math.prod(each.shape) == math.prod(each.shape[:2]) for each in (down, up))
    if not flat or len(down.shape) < 2:
        raise InputError(
            f"{at} is {up.shape} times {core.shape} times {down.shape}, which is no product of low rank"
        )
    return Tucker(core, down, up, scale)
