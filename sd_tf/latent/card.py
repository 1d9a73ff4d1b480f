"""What the card of a latent diffusion model says of its kind."""

import json

from sd_tf.files import read_json
from sd_tf.sharing.card import Traits, about_long_prompts


def traits_of(model, folder) -> Traits:
    """The `Traits` of a model that was saved in that folder."""
    height, width = model.image_size
    pipeline = read_json(folder / "model_index.json")["_class_name"]

    def with_diffusers(repo_id, prompt):
        said = json.dumps(prompt, ensure_ascii=False)
        return f"""With diffusers:

```python
import torch
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("{repo_id}", torch_dtype=torch.float32)
image = pipeline({said}, num_inference_steps=20, guidance_scale=3.0).images[0]
```"""

    return Traits(
        height,
        width,
        "latent diffusion model",
        "diffusers reads it as it is",
        ("stable-diffusion",),
        "diffusers",
        about_long_prompts(model.text_reader()),
        with_diffusers,
    )
