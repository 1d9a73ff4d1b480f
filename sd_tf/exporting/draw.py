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
    """A model's networks, tokenizer and noise schedule.

    Args:
        folder: where this file was written to, or where it is read from.
        networks: the folder in it whose networks draw: "float16", "int8" or "onnx".
    """

    def __init__(self, folder, networks):
        folder = Path(folder)
        self.settings = json.loads((folder / "settings.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        load = _onnx if networks == "onnx" else _litert
        names = ("text_encoder", "unet", "decoder")
        self.encode, self.denoise, self.decode = (load(folder / networks, name) for name in names)

    def generate(self, prompt, steps=20, guidance_scale=3.0, seed=0, negative_prompt=""):
        """Draws one picture by DDIM, uint8 (height, width, 3)."""
        if not 0 <= seed <= LARGEST_SEED:
            raise SystemExit(f"error: seed is {seed}: give 0 to {LARGEST_SEED}")
        states = self.encode(np.array([self._row(negative_prompt), self._row(prompt)], np.int32))
        timesteps = self._timesteps(steps)
        alphas = np.append(np.array(self.settings["alphas_cumprod"])[timesteps], self.settings["final_alpha"])
        signals, noises = np.sqrt(alphas).tolist(), np.sqrt(1 - alphas).tolist()
        x = normals(self.settings["noise_key"], seed, self.settings["latents"])[np.newaxis]
        for i, t in enumerate(timesteps):
            output = self.denoise(np.concatenate([x, x]), np.array([t, t], np.float32), states)
            output = output[:1] + guidance_scale * (output[1:] - output[:1])
            x0, noise = self._parts(output, x, signals[i], noises[i])
            x = (signals[i + 1] * x0 + noises[i + 1] * noise).astype(np.float32)
        return np.clip(np.round((self.decode(x)[0] + 1.0) * 127.5), 0, 255).astype(np.uint8)

    def _row(self, text):
        """Begin, ids, end, padding; what does not fit is cut off."""
        begin, end, padding = self.settings["begin_end_padding"]
        length = self.settings["tokens"]
        words, most = self.settings["words_of_several_tokens"], length - 2
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        ids = [each for token in ids for each in words.get(str(token), [token])]
        if len(ids) > most:
            warnings.warn(
                f"prompt {text!r} has {len(ids)} tokens: the last {len(ids) - most} are cut off", stacklevel=3
            )
        row = [begin, *ids[:most], end]
        return row + [padding] * (length - len(row))

    def _timesteps(self, steps):
        """Lin et al. 2023, table 2."""
        total, spacing = len(self.settings["alphas_cumprod"]), self.settings["timestep_spacing"]
        if not 1 <= steps <= total:
            raise SystemExit(f"error: steps is {steps}: give 1 to {total}")
        if spacing == "leading":
            found = np.arange(steps)[::-1] * (total // steps) + self.settings["steps_offset"]
        elif spacing == "trailing":
            found = np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
        else:
            found = np.round(np.linspace(0, total - 1, steps))[::-1]
        if found[0] >= total:  # by steps_offset
            raise SystemExit(f"error: steps is {steps}: give fewer")
        return found.astype(int)

    def _parts(self, output, x, signal, noise):
        """Clean latents and noise that the UNet sees in `x` (Salimans & Ho 2022, appendix D)."""
        if self.settings["prediction_type"] == "epsilon":
            return (x - noise * output) / signal, output
        if self.settings["prediction_type"] == "sample":
            return output, (x - signal * output) / noise
        return signal * x - noise * output, signal * output + noise * x


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

    def call(*arrays):
        for each, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(each["index"], array)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument("--networks", choices=found, default=found[0], help=f"default: {found[0]}")
    parser.add_argument("--negative-prompt", default="", help="what to lean away from")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="default: 3")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--output", default="picture.png", help="default: picture.png")
    flags = parser.parse_args()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if not Path(flags.output).resolve().parent.is_dir():
        raise SystemExit(f"error: --output {flags.output} is in no folder that there is")
    from PIL import Image

    model = Model(folder, flags.networks)
    image = model.generate(flags.prompt, flags.steps, flags.guidance_scale, flags.seed, flags.negative_prompt)
    Image.fromarray(image).save(flags.output)
    print(flags.output)


if __name__ == "__main__":
    main()
