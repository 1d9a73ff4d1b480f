"""The chunk that web interfaces read: as A1111 writes it."""

import re

from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.generation import parameters as chunk
from sd_tf.generation.parameters import parameters

FACT = r'\s*([\w ]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)'  # how A1111 finds facts in the last line


def test_facts_are_found_as_a1111_finds_them():
    settings = {"prompt": "a red dress,\nin snow", "negative_prompt": "blurred", "seed": 7, "eta": 0.0}
    settings |= {"model": "runs/a, b: c", "steps": 20, "sampler": "dpmpp_2m", "guidance_scale": 3.0}
    text = parameters(settings | {"karras": True}, (24, 32), strength=0.75)
    *prompt, negative, last = text.split("\n")
    assert prompt == ["a red dress,", "in snow"] and negative == "Negative prompt: blurred"
    assert dict(re.findall(FACT, last)) == {
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Karras",
        "CFG scale": "3",
        "Seed": "7",
        "Size": "32x24",
        "Model": '"runs/a, b: c"',
        "Denoising strength": "0.75",
    }


def test_every_sampler_has_a_name_there():
    assert set(chunk.SAMPLERS) == set(SAMPLERS)
    settings = {"prompt": "a", "seed": 0, "model": "fashion-mnist", "steps": 5, "sampler": "ddim"}
    facts = parameters(settings | {"guidance_scale": 1.5}, (16, 16)).split("\n")
    assert facts == [
        "a",
        "Steps: 5, Sampler: DDIM, CFG scale: 1.5, Seed: 0, Size: 16x16, Model: fashion-mnist",
    ]
