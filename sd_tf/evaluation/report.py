"""A page of pictures and numbers, `report.html`, that needs no other file."""

import base64
import html
import io

import numpy as np
from PIL import Image

from sd_tf.data.captions import CLASS_NAMES, COLOUR_NAMES
from sd_tf.errors import printable
from sd_tf.evaluation.scores import CLASS_PROMPTS, TINTED_PROMPTS
from sd_tf.images import drawn

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .25em .8em; text-align: right }
th:first-child, td:first-child, td.words { text-align: left } tr { border-bottom: 1px solid #ddd }
small, .note { color: #777 } code, pre { background: #f4f4f4; padding: .1em .3em; white-space: pre-wrap }
img { image-rendering: pixelated; max-width: 100% } .best { font-weight: 600 }
"""
NAMES = {
    "frechet_distance": "Fréchet distance",
    "tinted_frechet_distance": "Fréchet distance, in colours",
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


def page(reports, pictures, command, plot=None) -> str:
    """The whole page.

    Args:
        reports: dictionaries of report.json; a score that one of them lacks has no number there.
        pictures: the label of a report -> name of a sheet -> (uint8 (height, width, 3), a note).
        command: that made the page.
        plot: uint8 (height, width, 3), or None.
    """
    parts = [f"<h1>{html.escape(', '.join(dict.fromkeys(report['model'] for report in reports)))}</h1>"]
    parts += [f"<p>Made by <code>{html.escape(command)}</code>.</p>"]
    others = dict.fromkeys(report["command"] for report in reports if report["command"] != command)
    parts += [f"<p class=note>Scored by <code>{html.escape(other)}</code>.</p>" for other in others]
    parts += [_table(reports)]
    parts += [
        f"<p class=note>{html.escape(f'Left out{_of(models)}: {name}, since {why}.')}</p>"
        for (name, why), models in _skipped(reports).items()
    ]
    for sentence in dict.fromkeys(report.get("pictures") for report in reports):
        parts += [f"<p class=note>Judged beside {html.escape(sentence)}.</p>"] if sentence else []
    if plot is not None:
        parts.append(f"<h2>Distance and agreement</h2>{picture(plot)}")
    for name in dict.fromkeys(name for sheets in pictures.values() for name in sheets):
        parts.append(f"<h2>{html.escape(name)}</h2>")
        for label, sheets in pictures.items():
            if name in sheets:
                sheet, note = sheets[name]
                title = f"<h3>{html.escape(label)}</h3>" if len(reports) > 1 else ""
                parts.append(f"{title}{picture(sheet)}<p class=note>{html.escape(note)}</p>")
    for report in reports:
        title = f": {html.escape(report['label'])}" if len(reports) > 1 else ""
        parts += [
            f"<h2>Behind the numbers{title}</h2>",
            _of_prompts(report),
            _quantiles(report),
            _protocols(report),
        ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Scores</title><style>{STYLE}</style>"
    return head + "\n".join(parts) + "</html>\n"


def as_text(reports) -> str:
    """The table of scores, for a terminal; what an earlier report says is no command to it."""
    names = list(_firsts(reports))
    width = max(len(printable(name)) for name in names)
    labels = [printable(report["label"]) for report in reports]
    lines = [" ".join([" " * width, *(f"{label:>24}" for label in labels), f"{'real':>10}"])]
    reservations = {}
    for name in names:
        cells = []
        for report in reports:
            score = report["scores"].get(name)
            text = "" if score is None else f"{score['value']:.4g}"
            if score is not None and score["low"] is not None:
                text += f" ({score['low']:.3g} to {score['high']:.3g})"
            if score is not None and score["reservation"]:
                text, reservations[name] = f"{text}*", score["reservation"]
            cells.append(f"{text:>24}")
        real = _firsts(reports)[name]["real"]
        lines.append(
            " ".join([f"{printable(name):{width}}", *cells, f"{'' if real is None else f'{real:.4g}':>10}"])
        )
    lines += [printable(f"* {name} is no headline: {why}") for name, why in reservations.items()]
    for (name, why), models in _skipped(reports).items():
        lines.append(printable(f"left out{_of(models)}: {name}, since {why}"))
    return "\n".join(lines)


def _firsts(reports):
    """Name of a score -> that of the first report that has it."""
    found = {}
    for report in reports:
        for name, score in report["scores"].items():
            found.setdefault(name, score)
    return found


def _skipped(reports):
    """(what was left out, why) -> the models of which it was, none of them named if it was of all."""
    found = {}
    for report in reports:
        for reason in report["skipped"].items():
            found.setdefault(reason, {})[report["model"]] = None
    models = dict.fromkeys(report["model"] for report in reports)
    return {reason: [] if own.keys() == models.keys() else list(own) for reason, own in found.items()}


def _of(models):
    return f" of {', '.join(models)}" if models else ""


def _table(reports):
    """A row for each score and a column for each report."""
    rows = [_row("score", *(html.escape(report["label"]) for report in reports), "real", cell="th")]
    for name, first in _firsts(reports).items():
        scores = [report["scores"].get(name) for report in reports]
        best = _best([score for score in scores if score])
        arrow = "↓" if first["better"] == "lower" else "↑"
        real = "" if first["real"] is None else f"{first['real']:.4g}"
        rows.append(
            _row(f"{html.escape(title_of(name))} {arrow}", *(_cell(score, best) for score in scores), real)
        )
    note = (
        "<p class=note>Small figures are 95 % intervals. <em>real</em> is what real pictures score by the "
        "same protocol: the floor of a distance. A score that is no headline says why, and no model is the "
        "best by it.</p>"
    )
    return f"<table>{''.join(rows)}</table>{note}"


def _best(scores):
    """The best value of several, None where one of them may not say which is."""
    if len(scores) < 2 or any(score["reservation"] for score in scores):
        return None
    return (min if scores[0]["better"] == "lower" else max)(score["value"] for score in scores)


def _cell(score, best):
    if score is None:
        return ""
    text = f"{score['value']:.4g}"
    if score["value"] == best:
        text = f"<span class=best>{text}</span>"
    if score["low"] is not None:
        text += f" <small>{score['low']:.3g} to {score['high']:.3g}</small>"
    if score["reservation"]:
        text += f"<br><small>no headline: {html.escape(score['reservation'])}</small>"
    return text


def _row(*cells, cell="td"):
    return f"<tr>{''.join(f'<{cell}>{each}</{cell}>' for each in cells)}</tr>"


def _of_prompts(report):
    """How often each prompt's garment and colour are recognised."""
    details = {name: score["details"] for name, score in report["scores"].items()}
    garments = details.get("class_accuracy", {}) | details.get("tinted_class_accuracy", {})
    if not garments:
        return ""
    rows = [_row("garment recognised, and its colour", "grey", *COLOUR_NAMES, cell="th")]
    for i, (name, prompt) in enumerate(zip(CLASS_NAMES, CLASS_PROMPTS, strict=True)):
        coloured = TINTED_PROMPTS[i * len(COLOUR_NAMES) : (i + 1) * len(COLOUR_NAMES)]
        colours = [details.get("colour_accuracy", {}).get(each) for each in coloured]
        cells = [
            _share(garments.get(each)) + ("" if colour is None else f" <small>{_share(colour)}</small>")
            for each, colour in zip(coloured, colours, strict=True)
        ]
        rows.append(_row(html.escape(name), _share(garments.get(prompt)), *cells))
    return f"<table>{''.join(rows)}</table>"


def _share(value):
    return "" if value is None else f"{value:.2f}"


def _quantiles(report):
    """How far pictures are from the nearest training picture, drawn ones and unseen real ones."""
    details = report["scores"].get("nearest_training_distance", {}).get("details")
    if not details:
        return ""
    rows = [_row("distance to the nearest training picture, quantiles", *details["real"], cell="th")]
    for name in ("drawn", "real"):
        rows.append(_row(name, *(f"{value:.2f}" for value in details[name].values())))
    return f"<table>{''.join(rows)}</table>"


def title_of(name: str) -> str:
    """A score's name as tables have it."""
    known = name.removeprefix("inception_")
    return ("" if known == name else "Inception: ") + NAMES.get(known, known)


def _protocols(report):
    rows = [
        f"<tr><td>{html.escape(title_of(name))}</td><td class=words>"
        + html.escape("; ".join(f"{key}: {value}" for key, value in score["protocol"].items()))
        + "</td></tr>"
        for name, score in report["scores"].items()
    ]
    return f"<table>{''.join(rows)}</table>"


def picture(image) -> str:
    """uint8 (height, width, 3) as an element of a page, with all its bytes in it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def pareto_plot(reports, x="frechet_distance", y="class_accuracy") -> np.ndarray | None:
    """Distance against agreement over settings, a line for each model; uint8 (height, width, 3).

    None where a report lacks one of the two, as an earlier one can.

    A ring marks settings that no other of any model beats in both.
    """
    from matplotlib.figure import Figure

    if any({x, y} - report["scores"].keys() for report in reports):
        return None
    figure = Figure(figsize=(10, 5), dpi=110)
    axes = figure.subplots()
    points = [(report["scores"][x]["value"], report["scores"][y]["value"]) for report in reports]
    for model in dict.fromkeys(report["model"] for report in reports):
        own = [i for i, report in enumerate(reports) if report["model"] == model]
        line, name = list(zip(*(points[i] for i in own), strict=True)), printable(model)
        axes.plot(*line, "o-", markersize=4, linewidth=1, label=name)
        for i in own:
            label = printable(reports[i]["label"].removeprefix(model).strip(", "))
            axes.plot([], [], " ", label=f"{i + 1}: {label}" if label else f"{i + 1}")
    best = [(a, b) for a, b in points if not any(c <= a and d >= b and (c, d) != (a, b) for c, d in points)]
    axes.plot(*zip(*best, strict=True), "o", markersize=11, fillstyle="none", color="black")
    axes.set(xlabel=title_of(x) + " ↓", ylabel=title_of(y) + " ↑")
    _number_points(axes, points)
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is no formula, whatever stands in it
    figure.tight_layout()
    return drawn(figure)


def _number_points(axes, points):
    """Writes its number beside each point, on the side with most room."""
    pixels = axes.figure.dpi / 72  # of a point
    places, taken = axes.transData.transform(points) / pixels, []
    for number, (point, place) in enumerate(zip(points, places, strict=True), 1):
        offsets = np.array([(7, 5), (7, -11), (-13, 5), (-13, -11)])
        others = np.array([*np.delete(places, number - 1, axis=0), *taken]).reshape(-1, 2)
        room = [min(np.linalg.norm(others - place - offset, axis=1), default=0) for offset in offsets]
        offset = offsets[int(np.argmax(room))]
        taken.append(place + offset)
        axes.annotate(str(number), point, xytext=offset, textcoords="offset points", fontsize=8)
