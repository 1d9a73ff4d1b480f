"""How a picture was drawn, as AUTOMATIC1111's web interface writes it into PNG files and reads it back.

a red dress
Negative prompt: blurred
Steps: 20, Sampler: DDIM, CFG scale: 3, Seed: 0, Size: 32x32, Model: fashion-mnist
"""

KEY = "parameters"  # of the text chunk
FACTS = ("prompt", "negative_prompt", "seed", "model", "steps", "sampler", "guidance_scale", "karras")
SAMPLERS = {  # our names -> theirs
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
}


def parameters(settings: dict, size: tuple[int, int], strength: float | None = None) -> str:
    """The text of the chunk; of a picture without sampling steps, what is said of all.

    Args:
        settings: of the picture, `FACTS` among them; see `sd_tf.generation.settings.Settings`.
        size: (height, width) in pixels.
        strength: of image-to-image; None without.
    """
    prompt, negative_prompt, seed, model, steps, sampler, guidance_scale, karras = map(settings.get, FACTS)
    facts = {
        "Steps": steps,
        "Sampler": None if sampler is None else SAMPLERS[sampler],
        "Schedule type": "Karras" if karras else None,
        "CFG scale": None if guidance_scale is None else f"{guidance_scale:g}",
        "Seed": seed,
        "Size": f"{size[1]}x{size[0]}",
        "Model": _quoted(model),
        "Denoising strength": None if strength is None else f"{strength:g}",
    }
    lines = [prompt, f"Negative prompt: {negative_prompt}" if negative_prompt else None]
    lines.append(", ".join(f"{name}: {fact}" for name, fact in facts.items() if fact is not None))
    return "\n".join(line for line in lines if line is not None)


def _quoted(text):
    """In quotes where it has what divides the facts."""
    return f'"{text}"' if any(mark in text for mark in ",:\n") else text
