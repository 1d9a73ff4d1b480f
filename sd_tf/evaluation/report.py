"""A page of pictures and numbers, `report.html`, that needs no other file."""

import base64
import html
import io

import numpy as np
from PIL import Image

from sd_tf.data.captions import CLASS_NAMES, COLOUR_NAMES
from sd_tf.pictures import sheet

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .25em .8em; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
small, .note { color: #777 } code, pre { background: #f4f4f4; padding: .1em .3em; white-space: pre-wrap }
img { image-rendering: pixelated; max-width: 100% } .best { font-weight: 600 }
"""
NAMES = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance (KID)",
    "precision": "precision",
    "recall": "recall",
    "reconstruction_distance": "autoencoder's Fréchet distance",
    "reconstruction_psnr": "autoencoder's PSNR, dB",
    "class_accuracy": "garment recognised",
    "tinted_class_accuracy": "garment recognised, in colours",
    "colour_accuracy": "colour recognised",
    "diversity": "diversity",
    "nearest_training_distance": "distance to the nearest training picture",
    "copies": "share that is too near to one",
    "clip_score": "CLIP score",
}


def page(reports, pictures, plot=None) -> str:
    """The whole page.

    Args:
        reports: dictionaries of report.json, of the same scores.
        pictures: the label of a report -> name of a sheet -> uint8 (height, width, 3).
        plot: uint8 (height, width, 3), or None.
    """
    labels = [report["label"] for report in reports]
    parts = [f"<h1>{html.escape(', '.join(dict.fromkeys(report['model'] for report in reports)))}</h1>"]
    parts += [f"<p>Made by <code>{html.escape(reports[0]['command'])}</code>.</p>", _table(reports, labels)]
    parts += [
        f"<p class=note>Left out: {html.escape(name)}, since {html.escape(why)}.</p>"
        for name, why in reports[0]["skipped"].items()
    ]
    if plot is not None:
        parts.append(f"<h2>Distance and agreement</h2>{_picture(plot)}")
    for name in dict.fromkeys(name for sheets in pictures.values() for name in sheets):
        parts.append(f"<h2>{html.escape(name)}</h2>")
        for label, sheets in pictures.items():
            title = f"<h3>{html.escape(label)}</h3>" if len(pictures) > 1 else ""
            parts.append(title + (_picture(sheets[name]) if name in sheets else ""))
    parts += ["<h2>Protocols</h2>", *(_protocols(report) for report in reports[:1])]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Scores</title><style>{STYLE}</style>"
    return head + "\n".join(parts) + "</html>\n"


def _table(reports, labels):
    """A row for each score and a column for each report."""
    rows = [
        "<tr><th>score</th>",
        *(f"<th>{html.escape(label)}</th>" for label in labels),
        "<th>real</th></tr>",
    ]
    for name, first in reports[0]["scores"].items():
        scores = [report["scores"].get(name) for report in reports]
        values = [score["value"] for score in scores if score]
        marked = min(values) if first["better"] == "lower" else max(values)
        cells = [_cell(score, len(values) > 1 and marked) for score in scores]
        arrow = "↓" if first["better"] == "lower" else "↑"
        aside = "" if first["headline"] else " <small>(no headline)</small>"
        real = "" if first["real"] is None else f"{first['real']:.4g}"
        title = html.escape(_title(name))
        rows.append(f"<tr><td>{title} {arrow}{aside}</td>{''.join(cells)}<td>{real}</td></tr>")
    note = (
        "<p class=note>Small figures are 95 % intervals. <em>real</em> is what real pictures score by the "
        "same protocol: the floor of a distance. A score whose extractor has taught the model is no "
        "headline.</p>"
    )
    return f"<table>{''.join(rows)}</table>{note}"


def _cell(score, best):
    if score is None:
        return "<td></td>"
    mark = " class=best" if best is not False and score["value"] == best else ""
    low, high = score["low"], score["high"]
    interval = "" if low is None else f" <small>{low:.3g} to {high:.3g}</small>"
    return f"<td{mark}>{score['value']:.4g}{interval}</td>"


def _title(name):
    known = name.removeprefix("inception_")
    return ("" if known == name else "Inception: ") + NAMES.get(known, known)


def _protocols(report):
    rows = [
        f"<tr><td>{html.escape(_title(name))}</td><td style='text-align:left'>"
        + html.escape("; ".join(f"{key}: {value}" for key, value in score["protocol"].items()))
        + "</td></tr>"
        for name, score in report["scores"].items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _picture(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


# -- the pictures -----------------------------------------------------------------------------------


def sheets(drawn, judges) -> dict[str, np.ndarray]:
    """Name -> uint8 (height, width, 3): what a reader wants to see of the pictures behind the numbers."""
    of_classes = drawn.grey.reshape(len(CLASS_NAMES), -1, *drawn.grey.shape[1:])
    of_pairs = drawn.tinted.reshape(len(CLASS_NAMES), len(COLOUR_NAMES), -1, *drawn.tinted.shape[1:])
    found = {
        "Garments, a row for each": sheet(np.concatenate([row[:20] for row in of_classes]), 20),
        "Colours, a row for each garment, two of each colour": sheet(
            np.concatenate([row[:, :2].reshape(-1, *row.shape[2:]) for row in of_pairs]), 16
        ),
    }
    some = np.concatenate([row[:2] for row in of_classes])
    beside = np.concatenate([some, judges.nearest_training_pictures(some)])
    found["Drawn, and below each its nearest training picture"] = sheet(beside, 20)
    if drawn.rebuilt is not None:
        some = np.concatenate([judges.real.others[:20], drawn.rebuilt[:20]])
        found["Real, and below each what the autoencoder makes of it"] = sheet(some, 20)
    return found


def pareto_plot(reports, x="frechet_distance", y="class_accuracy") -> np.ndarray:
    """Distance against agreement over settings, a line for each model; uint8 (height, width, 3).

    A ring marks settings that no other of any model beats in both.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), dpi=110)
    points = [(report["scores"][x]["value"], report["scores"][y]["value"]) for report in reports]
    for model in dict.fromkeys(report["model"] for report in reports):
        own = [i for i, report in enumerate(reports) if report["model"] == model]
        axes.plot(*zip(*(points[i] for i in own), strict=True), "o-", markersize=4, linewidth=1, label=model)
        for i in own:
            axes.annotate(reports[i]["label"].removeprefix(model).strip(", "), points[i], fontsize=7)
    best = [(a, b) for a, b in points if not any(c <= a and d >= b and (c, d) != (a, b) for c, d in points)]
    axes.plot(*zip(*best, strict=True), "o", markersize=11, fillstyle="none", color="black")
    axes.set(xlabel=_title(x) + " ↓", ylabel=_title(y) + " ↑")
    axes.legend()
    figure.tight_layout()
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return image
