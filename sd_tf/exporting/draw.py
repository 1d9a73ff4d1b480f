"""Draws with exported networks: `python draw.py "a red dress" --networks float16 --output dress.png`.

Needs numpy, tokenizers and Pillow, and what runs the networks: ai-edge-litert for LiteRT's, onnxruntime
for ONNX's. It reads the folder that it lies in. A prompt longer than the text tower is cut, with a
warning, and weights such as "(red:1.3)" are text.
"""

import argparse
import json
import math
import warnings
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

MASK = 2**64 - 1
LARGEST_SEED = 2**32 - 1


class Model:
    """A model's networks, tokenizer and noise schedules.

    Args:
        folder: where this file was written to, or where it is read from.
        networks: the folder in it whose networks draw: "float16", "int8" or "onnx".
    """

    def __init__(self, folder, networks):
        folder = Path(folder)
        self.settings = settings_in(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        load = _onnx if networks == "onnx" else _litert
        self.encode = load(folder / networks, "text_encoder")
        self.stages = [
            Stage(each, load(folder / networks, each["network"])) for each in self.settings["stages"]
        ]
        self.decode = load(folder / networks, "decoder") if self.settings["has_decoder"] else None

    def generate(
        self,
        prompt,
        steps=20,
        guidance_scale=3.0,
        seed=0,
        negative_prompt="",
        sr_steps=10,
        sr_guidance_scale=1.0,
    ):
        """Draws one picture by DDIM, uint8 (height, width, 3).

        The first stage has `steps` and `guidance_scale`; those of a cascade that enlarge have `sr_steps` and
        `sr_guidance_scale`.
        """
        if not 0 <= seed <= LARGEST_SEED:
            raise SystemExit(f"error: seed is {seed}: give 0 to {LARGEST_SEED}")
        drawn, pictures = [(steps, guidance_scale)], None
        drawn += [(sr_steps, sr_guidance_scale)] * (len(self.stages) - 1)
        for place, (stage, (number, _)) in enumerate(zip(self.stages, drawn, strict=True)):
            # says what does not fit before anything is drawn
            stage.timesteps(number, "sr_steps" if place else "steps")
        states = self.encode(*self._rows([negative_prompt, prompt]))
        for stage, (number, scale) in zip(self.stages, drawn, strict=True):
            found = stage.draw(states, seed, number, scale, pictures)
            if self.decode is not None:
                found = self.decode(found)
            pictures = np.clip(np.round((found + 1.0) * 127.5), 0, 255).astype(np.uint8)
        return pictures[0]

    def _rows(self, texts):
        """Token ids, int32 (texts, tokens), and their mask if the text encoder reads it."""
        lengths, rows = zip(*map(self._row, texts), strict=True)
        rows = np.array(rows, np.int32)
        if not self.settings["reads_mask"]:
            return (rows,)
        return rows, (np.arange(rows.shape[1]) < np.array(lengths)[:, np.newaxis]).astype(np.int32)

    def _row(self, text):
        """How many tokens are the text's; and begin, ids, end, padding. What does not fit is cut off."""
        begin, end, length = (self.settings[name] for name in ("begin", "end", "tokens"))
        words, most = self.settings["words_of_several_tokens"], length - len(begin) - len(end)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        ids = [each for token in ids for each in words.get(str(token), [token])]
        if len(ids) > most:
            warnings.warn(
                f"prompt {text!r} has {len(ids)} tokens: the last {len(ids) - most} are cut off", stacklevel=4
            )
        row = [*begin, *ids[:most], *end]
        return len(row), row + [self.settings["padding"]] * (length - len(row))


class Stage:
    """A network with its noise schedule, which draws or enlarges one picture.

    Args:
        settings: its entry in settings.json.
        denoise: the network as a function of arrays.
    """

    def __init__(self, settings, denoise):
        self.settings, self.denoise = settings, denoise

    def draw(self, states, seed, steps, guidance_scale, smaller=None):
        """Latents or pixels, float32 (1, height, width, channels).

        Args:
            states: of the negative prompt and the prompt, (2, tokens, width).
            seed, steps, guidance_scale: see `Model.generate`.
            smaller: the picture to enlarge, uint8 (1, height, width, 3), or None.
        """
        timesteps = self.timesteps(steps)
        alphas = np.append(np.array(self.settings["alphas_cumprod"])[timesteps], self.settings["final_alpha"])
        signals, noises = np.sqrt(alphas).tolist(), np.sqrt(1 - alphas).tolist()
        x = normals(self.settings["noise_key"], seed, self.settings["shape"])[np.newaxis]
        states = states if guidance_scale != 1 else states[1:]
        low_res, levels = (), ()
        if smaller is not None:
            low_res = (self._enlarged(smaller, seed),)
            levels = (np.full(len(states), self.settings["augmentation"]["timestep"], np.float32),)
        for i, t in enumerate(timesteps):
            given = np.repeat(np.concatenate([x, *low_res], axis=-1), len(states), axis=0)
            output = self.denoise(given, np.full(len(states), t, np.float32), states, *levels)
            output = output[..., : x.shape[-1]]  # behind it are variances, which DDIM does not need
            output = output[:1] + guidance_scale * (output[-1:] - output[:1])
            x0, noise = self._parts(output, x, signals[i], noises[i])
            if self.settings["thresholding"]["kind"] != "none":
                x0 = self._in_range(x0)
                noise = (x - signals[i] * x0) / noises[i]
            x = (signals[i + 1] * x0 + noises[i + 1] * noise).astype(np.float32)
        return x

    def timesteps(self, steps, name="steps"):
        """Those that are visited, int (steps,): Lin et al. 2023, table 2; errors say `name`."""
        total, spacing = len(self.settings["alphas_cumprod"]), self.settings["timestep_spacing"]
        if not 1 <= steps <= total:
            raise SystemExit(f"error: {name} is {steps}: give 1 to {total}")
        if spacing == "leading":
            found = np.arange(steps)[::-1] * (total // steps) + self.settings["steps_offset"]
        elif spacing == "trailing":
            found = np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
        else:
            found = np.round(np.linspace(0, total - 1, steps))[::-1]
        if found[0] >= total:  # by steps_offset
            raise SystemExit(f"error: {name} is {steps}: give fewer")
        return found.astype(int)

    def _enlarged(self, smaller, seed):
        """The picture with as many pixels as what is drawn (bilinear, corners on corners), and with noise."""
        augmentation, shape = self.settings["augmentation"], self.settings["shape"]
        rows, columns = (
            np.maximum(0, 1 - np.abs(np.linspace(0, small - 1, large)[:, np.newaxis] - np.arange(small)))
            for small, large in zip(smaller.shape[1:3], shape[:2], strict=True)
        )
        clean = np.einsum("Hh,nhwc,Ww->nHWc", rows, smaller / 127.5 - 1.0, columns, optimize=True)
        noise = normals(augmentation["noise_key"], seed, shape)[np.newaxis]
        return (augmentation["signal"] * clean + augmentation["noise"] * noise).astype(np.float32)

    def _parts(self, output, x, signal, noise):
        """Clean latents and noise that the network sees in `x` (Salimans & Ho 2022, appendix D)."""
        if self.settings["prediction_type"] == "epsilon":
            return (x - noise * output) / signal, output
        if self.settings["prediction_type"] == "sample":
            return output, (x - signal * output) / noise
        return signal * x - noise * output, signal * output + noise * x

    def _in_range(self, x0):
        """Static or dynamic thresholding (Saharia et al. 2022, section 2.3)."""
        settings, bound = self.settings["thresholding"], 1.0
        if settings["kind"] == "dynamic":
            bound = max(1.0, float(np.quantile(np.abs(x0), settings["percentile"])))
            bound = bound if settings["maximum"] is None else min(bound, settings["maximum"])
        return np.clip(x0, -bound, bound) / bound


def settings_in(folder):
    """What settings.json says."""
    return json.loads((Path(folder) / "settings.json").read_text())


def normals(key, seed, shape):
    """A picture's noise, float32 (*shape): SplitMix64 (Steele et al. 2014), then Box and Muller (1958)."""
    golden, state = 0x9E3779B97F4A7C15, 0
    for part in (*key, None):
        state = _mix((state + (part + golden if part is not None else (seed + 1) * golden)) & MASK)
    count = math.prod(shape)
    half = (count + 1) // 2
    hashes = [_mix((state + column * golden) & MASK) >> 11 for column in range(1, 2 * half + 1)]
    uniform = np.array(hashes, np.float64) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log1p(-uniform[:half])), 2.0 * np.pi * uniform[half:]
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return pairs[:count].reshape(shape).astype(np.float32)


def _mix(state):
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def _litert(folder, name):
    """A network as a function of arrays, in the order of its arguments' names."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise SystemExit("error: LiteRT is not installed: pip install ai-edge-litert") from None
    interpreter = Interpreter(model_path=str(folder / f"{name}.tflite"))
    interpreter.allocate_tensors()
    inputs = sorted(interpreter.get_input_details(), key=lambda each: each["name"])
    [output] = interpreter.get_output_details()
    size = inputs[0]["shape"][0]  # rows that the file takes at once

    def call(*arrays):
        rows = len(arrays[0])
        found = [few(*(array[i : i + size] for array in arrays)) for i in range(0, rows, size)]
        return np.concatenate(found)[:rows]

    def few(*arrays):
        for each, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(each["index"], np.repeat(array, size // len(array), axis=0))
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    return call


def _onnx(folder, name):
    try:
        import onnxruntime
    except ImportError:
        raise SystemExit("error: ONNX Runtime is not installed: pip install onnxruntime") from None
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    names = [each.name for each in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def main():
    """Parses flags, draws, and writes a PNG file."""
    folder = Path(__file__).parent
    found = [name for name in ("float16", "int8", "onnx") if (folder / name).is_dir()]
    if not found:
        raise SystemExit(f"error: no networks are in {folder}: copy the whole folder that was exported")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument("--networks", choices=found, default=found[0], help=f"default: {found[0]}")
    parser.add_argument("--negative-prompt", default="", help="what to lean away from")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="default: 3")
    is_cascade = len(settings_in(folder)["stages"]) > 1
    if is_cascade:
        parser.add_argument("--sr-steps", type=int, default=10, help="of later stages (default: 10)")
        parser.add_argument("--sr-guidance-scale", type=float, default=1.0, help="likewise (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--output", default="picture.png", help="default: picture.png")
    flags = parser.parse_args()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if not Path(flags.output).resolve().parent.is_dir():
        raise SystemExit(f"error: --output {flags.output} is in no folder that there is")
    from PIL import Image

    model = Model(folder, flags.networks)
    later = {name: getattr(flags, name) for name in ("sr_steps", "sr_guidance_scale") if is_cascade}
    image = model.generate(
        flags.prompt, flags.steps, flags.guidance_scale, flags.seed, flags.negative_prompt, **later
    )
    Image.fromarray(image).save(flags.output)
    print(flags.output)


if __name__ == "__main__":
    main()
