"""LoRAs of a cascade: each stage has its own, a file that diffusers' IF pipelines load.

runs/mine/base/pytorch_lora_weights.safetensors
runs/mine/sr2/pytorch_lora_weights.safetensors

A stage's file is taken by itself as well: for the stage whose name its folder has, or else the only one that
it fits.
"""

import re
from pathlib import Path

from sd_tf.cascade.stage import MOST_STAGES, stage_name
from sd_tf.checkpoints.sources import refuse_links_out
from sd_tf.errors import InputError, unknown
from sd_tf.lora import files
from sd_tf.lora.adaptations import Change
from sd_tf.lora.names import TRANSFORMERS, Naming

NAMING = Naming(
    "cascades such as DeepFloyd IF",
    {**TRANSFORMERS, "Stable Diffusion": re.compile(r"[._]attn[12][._]")},
)
ALL_NAMES = tuple(stage_name(number) for number in range(MOST_STAGES))


def read_lora(
    path, modules: dict[str, tuple[int, ...]], names, stage: str | None = None
) -> dict[str, Change]:
    """Reads the LoRA of a cascade or of one of its stages.

    Args:
        path: a folder with one for each stage, a stage's folder, or a stage's file.
        modules: `Adaptations.modules` of the cascade, such as "base.unet.conv_in".
        names: of the cascade's stages.
        stage: the stage that a file is for; None to find it out.

    Returns:
        Module -> `Change`.

    Raises:
        InputError: a file is damaged or no LoRA, the stages are others, or it is for several of them.
    """
    path = Path(path)
    if stage is not None and stage not in names:
        raise unknown("stage", stage, names)
    found = _files_of_stages(path, names)
    if found:
        if stage is not None:
            found = {name: file for name, file in found.items() if name == stage}
            if not found:
                raise InputError(f"{path} has no LoRA for {stage}: leave stage out")
        read = {name: _read(file, modules, name) for name, file in found.items()}
    else:
        name = stage or _named_by_folder(path, names)
        read = {name: _read(path, modules, name)} if name else _of_the_stage_that_fits(path, modules, names)
    return {f"{name}.{module}": change for name, own in read.items() for module, change in own.items()}


def _files_of_stages(path, names) -> dict[str, Path]:
    """Stage -> its folder, of a folder with one for each."""
    refuse_links_out(path, ALL_NAMES)
    found = {name: path / name for name in ALL_NAMES if any((path / name).glob("*.safetensors"))}
    for name in found:
        if name not in names:
            raise InputError(
                f"{path} has a LoRA for {name}, which this model has not, only {', '.join(names)}: name the "
                f"folder of one stage, such as {path / next(iter(found))}"
            )
    return found


def _named_by_folder(path, names) -> str | None:
    """The stage that a file's folder is called by, or a folder itself."""
    whole = path.absolute()
    name = whole.name if path.is_dir() else whole.parent.name
    if name in ALL_NAMES and name not in names:
        raise InputError(
            f"{path} is for {name}, as its folder is called, which this model has not, only "
            f"{', '.join(names)}: say which one it is for, such as stage={names[0]!r}"
        )
    return name if name in names else None


def _of_the_stage_that_fits(path, modules, names):
    """Stage -> its changes, of the only stage whose layers a file has."""
    fitting, errors = {}, []
    for name in names:
        try:
            fitting[name] = _read(path, modules, name)
        except InputError as error:
            errors.append(error)
    if not fitting:
        raise errors[0]
    if len(fitting) > 1:
        first = next(iter(fitting))
        raise InputError(
            f"{path} fits {' and '.join(fitting)}: say which one it is for, such as stage={first!r}, or put "
            f"it into a folder of that name, {first}"
        )
    return fitting


def _read(file, modules, name):
    """The changes of one stage's UNet, whose modules begin with "unet.", as in its file."""
    prefix = f"{name}."
    own = {key.removeprefix(prefix): shape for key, shape in modules.items() if key.startswith(prefix)}
    return files.read_lora(file, own, NAMING)
