"""A model card: the README.md of a model on the hub, whose first lines are metadata (Mitchell et al. 2019).

Where the folder is a pipeline of diffusers, the metadata name diffusers as the library: the hub's own snippet
then works.
"""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sd_tf.errors import printable
from sd_tf.sharing.facts import Facts

PLACEHOLDER = "a photo of a cat"  # in snippets of a model of which no prompt is known
LONGEST_PROTOCOL = 60  # characters of a value in a score's protocol


class Example(NamedTuple):
    """A picture beside the card, by its path in the repository, and its prompt."""

    file: str
    prompt: str


class Traits(NamedTuple):
    """What a family says of one of its models.

    Attributes:
        height, width: of its pictures, in pixels.
        kind: what it is, such as "latent diffusion model".
        read_by: a clause: what else reads its folder.
        tags: on the hub, of this kind.
        library: on the hub, whose snippet it shows.
        long_prompts: a sentence: what becomes of them.
        elsewhere: `elsewhere(repo_id, prompt)` -> Markdown that shows how others use it; None for nothing.
    """

    height: int
    width: int
    kind: str
    read_by: str
    tags: tuple[str, ...]
    library: str
    long_prompts: str
    elsewhere: Callable[[str, str], str] | None = None


def about_long_prompts(encoder) -> str:
    """The `long_prompts` of a model that reads with that `TextEncoder`."""
    rows = "encoded in parts" if encoder.most_rows > 1 else "cut"
    return f"Prompts of more than {encoder.length} tokens are {rows}."


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
        f"---\n{_metadata(traits, facts, examples, license, base_model)}\n---",
        f"# {repo_id.split('/')[-1]}",
        f"A text-to-image {traits.kind} that draws pictures of {traits.height} x {traits.width} "
        f"pixels. It was made with sd_tf, in TensorFlow and Keras; {traits.read_by}.",
        *(f"![{_plain(each.prompt)}]({each.file})" for each in examples),
        _usage(repo_id, traits, prompt),
        _training(facts, base_model),
        _scores(facts.scores),
        _limits(traits),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(traits, facts, examples, license, base_model):
    from huggingface_hub import ModelCardData  # slow to import

    widget = [{"text": each.prompt, "output": {"url": each.file}} for each in examples]
    data = ModelCardData(
        license=license,
        library_name=traits.library,
        pipeline_tag="text-to-image",
        tags=["text-to-image", *traits.tags, "keras", "sd_tf"],
        datasets=[facts.hub_dataset] if facts.hub_dataset else None,
        base_model=base_model,
        widget=widget or None,
    )
    return data.to_yaml()


def _usage(repo_id, traits, prompt):
    said = json.dumps(prompt, ensure_ascii=False)
    here = f"""## How to use it

With sd_tf:

```python
import sd_tf

model = sd_tf.load("{repo_id}")
images = model.generate({said}, num_images=4, seed=0)  # uint8 (4, {traits.height}, {traits.width}, 3)
sd_tf.show(images, file="pictures.png")
```"""
    return here if traits.elsewhere is None else f"{here}\n\n{traits.elsewhere(repo_id, prompt)}"


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
worse pictures. {traits.long_prompts} Sizes far from
{traits.height} x {traits.width} pixels are drawn worse. It has no safety checker."""


def _plain(text) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = html.escape(printable(str(text)), quote=False)
    return "".join(f"\\{each}" if each in "\\`*_[]|#!~" else each for each in text)
