"""Scores a model: `python -m sd_tf.evaluate --model fashion-mnist --dataset fashion_mnist`."""

import json
from pathlib import Path

from sd_tf import commandline
from sd_tf.errors import unknown


def main(arguments=None):
    """Draws pictures for every class and colour, judges them and writes report.json and two sheets."""
    parser = commandline.Parser("python -m sd_tf.evaluate", description=__doc__)
    parser.add_argument("--model", default="fashion-mnist", help="a bundled name or a folder")
    parser.add_argument("--dataset", default="fashion_mnist", help="fashion_mnist, whose classes are judged")
    parser.add_argument("--data-dir", help="folder of the Fashion-MNIST files (default: $SD_TF_DATA_DIR)")
    parser.add_argument("--classifier", default="runs/classifier", help="the judge's folder, filled if empty")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default: 20)")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="pull of the prompt (default: 3)")
    parser.add_argument("--sampler", default="ddim", help="ddim or ddpm (default: ddim)")
    parser.add_argument("--seed", type=int, default=0, help="of each prompt's first picture (default: 0)")
    parser.add_argument("--output", default="evaluation", help="folder for the report (default: evaluation)")
    flags = parser.parse_args(arguments)
    if flags.dataset != "fashion_mnist":
        raise unknown("--dataset", flags.dataset, ["fashion_mnist"])
    output = Path(flags.output)
    commandline.check_writable(output)

    commandline.load_tensorflow()
    import sd_tf
    from sd_tf.data.fashion_mnist import FashionMNIST
    from sd_tf.evaluation.alignment import class_and_colour_accuracy
    from sd_tf.evaluation.features import load_or_train_classifier
    from sd_tf.pictures import save_sheet

    model = sd_tf.load(flags.model)
    train, test = (FashionMNIST(split, flags.data_dir) for split in ("train", "test"))
    classifier, accuracy = load_or_train_classifier(flags.classifier, train, test)
    settings = {name: getattr(flags, name) for name in ("steps", "guidance_scale", "sampler", "seed")}
    report, grey, tinted = class_and_colour_accuracy(
        lambda prompts, num_images: model.generate(prompts, num_images=num_images, **settings), classifier
    )
    report = {"model": flags.model, **settings, "classifier_test_accuracy": accuracy, **report}

    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    save_sheet(output / "classes.png", grey, len(grey) // 10)
    save_sheet(output / "colours.png", tinted, len(tinted) // 10)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    commandline.run(main)
