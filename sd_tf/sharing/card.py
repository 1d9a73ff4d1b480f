"""A model card: the README.md of a model on the hub, whose first lines are metadata (Mitchell et al. 2019).

The metadata name diffusers as the library, because the folder is a pipeline of diffusers: the hub's own
snippet then works.
"""

import html
import json
from pathlib import Path
from typing import NamedTuple

from sd_tf.errors import printable
from sd_tf.sharing.facts import Facts

TAGS = ["text-to-image", "stable-diffusion", "keras", "sd_tf"]
PLACEHOLDER = "a photo of a cat"  # in snippets of a model of which no prompt is known
LONGEST_PROTOCOL = 60  # characters of a value in a score's protocol


class Example(NamedTuple):
    """A picture beside the card, by its path in the repository, and its prompt."""

    file: str
    prompt: str


class Traits(NamedTuple):
    """What the model's configuration says: pictures in pixels, tokens of a prompt, class in diffusers."""

    height: int
    width: int
    tokens: int
    pipeline: str


def model_card(
    repo_id: str,
    traits: Traits,
    facts: Facts,
    examples: list[Example] = (),
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """The text of README.md.

    Args:
        repo_id: "organisation/name" on the hub.
        traits: of the model.
        facts: of its training and scores.
        examples: pictures that the model drew.
        license: its identifier on the hub, such as "apache-2.0"; None leaves it out.
        base_model: hub id of the model that it was fine-tuned from.
    """
    prompt = examples[0].prompt if examples else "a red dress" if facts.draws_garments else PLACEHOLDER
    parts = [
        f"---\n{_metadata(facts, examples, license, base_model)}\n---",
        f"# {repo_id.split('/')[-1]}",
        f"A text-to-image latent diffusion model that draws pictures of {traits.height} x {traits.width} "
        "pixels. It was made with sd_tf, in TensorFlow and Keras; diffusers reads it as it is.",
        *(f"![{_plain(each.prompt)}]({each.file})" for each in examples),
        _usage(repo_id, traits, prompt),
        _training(facts, base_model),
        _scores(facts.scores),
        _limits(traits),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(facts, examples, license, base_model):
    from huggingface_hub import ModelCardData  # slow to import

    widget = [{"text": each.prompt, "output": {"url": each.file}} for each in examples]
    data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=TAGS,
        datasets=[facts.hub_dataset] if facts.hub_dataset else None,
        base_model=base_model,
        widget=widget or None,
    )
    return data.to_yaml()


def _usage(repo_id, traits, prompt):
    prompt = json.dumps(prompt, ensure_ascii=False)
    return f"""## How to use it

With sd_tf:

```python
import sd_tf

model = sd_tf.load("{repo_id}")
images = model.generate({prompt}, num_images=4, seed=0)  # uint8 (4, {traits.height}, {traits.width}, 3)
sd_tf.show(images, file="pictures.png")
```

With diffusers:

```python
import torch
from diffusers import {traits.pipeline}

pipeline = {traits.pipeline}.from_pretrained("{repo_id}", torch_dtype=torch.float32)
image = pipeline({prompt}, num_inference_steps=20, guidance_scale=3.0).images[0]
```"""


def _training(facts, base_model):
    lines = []
    if base_model is not None:
        lines.append(f"- fine-tuned from: [{base_model}](https://huggingface.co/{base_model})")
    if facts.dataset is not None:
        lines.append(f"- data set: {_plain(facts.dataset)}")
    lines += [f"- {name}: {_plain(value)}" for name, value in facts.settings]
    lines += [
        f"- stage {_plain(stage.name)}: {stage.steps:,} steps in {stage.minutes:,.1f} minutes"
        for stage in facts.stages
    ]
    if not lines:
        return "## How it was trained\n\nNothing is recorded of its training."
    return "\n".join(["## How it was trained\n", *lines])


def _scores(scores):
    if not scores:
        return ""
    rows = [
        f"| {_plain(name)} | {score['value']:.4g} | {_interval(score)} | {_number(score.get('real'))} "
        f"| {_protocol(score['protocol'])} |"
        for name, score in scores.items()
    ]
    head = [
        "## Scores\n",
        "| score | value | 95 % interval | real pictures | measured with |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def _interval(score):
    low, high = score.get("low"), score.get("high")
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _number(value):
    return "" if value is None else f"{value:.4g}"


def _protocol(protocol):
    """The numbers and names in a score's protocol; paths of the machine that scored are left out."""
    known = {name: value for name, value in protocol.items() if isinstance(value, (int, float, str))}
    said = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in known.items()
        if len(str(value)) <= LONGEST_PROTOCOL and not Path(str(value)).is_absolute()
    ]
    return _plain(", ".join(said))


def _limits(traits):
    return f"""## Limits

It knows what its training pictures and their captions showed, and nothing else: prompts in other words give
worse pictures. Prompts of more than {traits.tokens} tokens are encoded in parts. Sizes far from
{traits.height} x {traits.width} pixels are drawn worse. It has no safety checker."""


def _plain(text) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = html.escape(printable(str(text)), quote=False)
    return "".join(f"\\{each}" if each in "\\`*_[]|#!~" else each for each in text)
