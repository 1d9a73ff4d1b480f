"""Captions of pictures by BLIP (Li et al. 2022), as transformers has it."""

import importlib.util
import os
from pathlib import Path

from PIL import Image

from sd_tf.errors import InputError, argument, install_extra, shown
from sd_tf.files import reason

BLIP_BASE = "Salesforce/blip-image-captioning-base"
MOST_TOKENS = 50  # of a caption, without its prefix
NEEDED = ("torch", "transformers")


def check_installed():
    """Raises `InputError` unless the packages of the extra `caption` are there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"captions need {' and '.join(missing)}: {install_extra('caption')}")


class Describer:
    """A BLIP that writes a caption for each picture, always the same (greedy decoding).

    Args:
        name: a hub id, or a folder that transformers wrote.
        prefix: what every caption begins with, such as "a photo of"; empty for none.

    Raises:
        InputError: there is no such model, it is no BLIP for captions, or it is a pickle.
    """

    def __init__(self, name: str = BLIP_BASE, prefix: str = ""):
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        # No service of the hub is asked to convert weights.
        os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
        self._model, self._processor = _read(name)
        self._prefix, self._device = prefix, "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self._device).eval()

    def captions(self, pictures: list[Image.Image]) -> list[str]:
        """A caption for each picture (RGB), without line breaks."""
        text = [self._prefix] * len(pictures) if self._prefix else None
        inputs = self._processor(images=pictures, text=text, return_tensors="pt").to(self._device)
        ids = self._model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False, num_beams=1)
        texts = self._processor.batch_decode(ids, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def _read(name):
    """The model and its processor."""
    from transformers import AutoConfig, BlipForConditionalGeneration, BlipProcessor

    path = Path(name).expanduser()
    source = str(path) if path.is_dir() else name
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        if kind != "blip":
            raise InputError(
                f"{argument('model')} {name} is a {shown(kind)}: name a BLIP, such as {BLIP_BASE}"
            )
        # The default model has no safetensors file; torch reads its weights without running a pickle's code.
        safetensors = None if name == BLIP_BASE else True
        model = BlipForConditionalGeneration.from_pretrained(source, use_safetensors=safetensors)
        return model, BlipProcessor.from_pretrained(source)
    except InputError:
        raise
    except Exception as error:  # whatever a hub, a network or a stranger's files lead transformers to
        raise InputError(
            f"{argument('model')} {name} cannot be read ({_first_sentence(error)}): name a BLIP on the hub "
            "or in a folder, with weights in safetensors files"
        ) from None


def _first_sentence(error):
    return reason(error).split(". ")[0][:200]
