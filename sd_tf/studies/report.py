"""The page of a ladder, `report.html`, that needs no other file."""

import html

from sd_tf.evaluation.report import STYLE, picture, title_of
from sd_tf.studies.ladder import Ladder, of_rung, spreads

FIRST = (  # in the first table; other scores are in the second
    *("frechet_distance", "inception_frechet_distance", "kernel_distance", "inception_kernel_distance"),
    *("diversity", "class_accuracy", "tinted_class_accuracy", "colour_accuracy"),
)
OWN_TITLES = {"peak_memory": "peak memory, MB ↓", "seconds_per_step": "seconds a step ↓"}
NOTE = (
    "Medians over the seeds; small figures are the range over them, from the lowest to the highest. "
    "<em>real</em> is what real pictures score by the same protocol. Peak memory is that of the training's "
    "process, without a GPU's own, and seconds are those of a machine as busy as it was. A cell is empty "
    "where there is no such score: an unconditional rung reads no prompt, so its agreement with prompts is "
    "left empty, and a run that failed has none."
)


def page(ladder: Ladder, results, sheets: dict, command: str) -> str:
    """The whole page.

    Args:
        ladder: the study.
        results: `Result`s of all runs.
        sheets: prompt -> uint8 (height, width, 3).
        command: that made the page.
    """
    firsts = _firsts(results)
    others = [name for name in firsts if name not in FIRST]
    main = [*(name for name in FIRST if name in firsts), *OWN_TITLES]
    parts = [
        f"<h1>{html.escape(ladder.name)}</h1>",
        f"<p>Made by <code>{html.escape(command)}</code>: each rung is trained with "
        f"{_seeds(ladder)}, for {_length(ladder)} each.</p>",
        *(f"<p class=note>{html.escape(note)}</p>" for note in (*ladder.notes, *_about(results, firsts))),
        _rungs(ladder),
        "<h2>What each rung scores</h2>",
        _table(ladder, results, main, firsts),
        f"<p class=note>{NOTE}</p>",
        _failures(results),
    ]
    if sheets:
        parts.append(
            "<h2>What the rungs draw</h2><p class=note>Of each rung the model of its first seed that "
            "was trained to the end; columns begin with the same noise.</p>"
        )
    parts += [f"<h3>{html.escape(prompt)}</h3>{picture(sheet)}" for prompt, sheet in sheets.items()]
    if others:
        parts += ["<h2>Other scores</h2>", _table(ladder, results, others, firsts)]
    parts += ["<h2>Behind the numbers</h2>", _protocols(firsts)]
    title = html.escape(ladder.name)
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    return head + "\n".join(parts) + "</html>\n"


def as_text(ladder: Ladder, results) -> str:
    """The first table, for a terminal."""
    firsts = _firsts(results)
    names = [*(name for name in FIRST if name in firsts), *OWN_TITLES]
    lines = []
    for rung in ladder.rungs:
        own = spreads(of_rung(results, rung))
        cells = [f"{name} {_shown(name, own[name].median)}" for name in names if name in own]
        lines.append(f"{rung.title}: {', '.join(cells) or 'nothing'}")
    return "\n".join(lines)


def _seeds(ladder):
    seeds = ", ".join(map(str, ladder.seeds))
    return f"seed{'s' if len(ladder.seeds) > 1 else ''} {seeds}"


def _length(ladder):
    if ladder.minutes is not None:
        return f"{ladder.minutes:g} minutes"
    return f"{ladder.identity.get('--max-steps')} steps"


def _firsts(results):
    """Name of a score -> that of the first run that has it; of one without a reservation, if there is one."""
    found = {}
    for result in results:
        for name, score in result.scores.items():
            if name not in found or (found[name]["reservation"] and not score["reservation"]):
                found[name] = score
    return found


def _about(results, firsts):
    """Sentences on what is left out, and on scores that are not what their names promise."""
    extractor = str(firsts.get("diversity", {}).get("protocol", {}).get("extractor", ""))
    if extractor and not extractor.startswith("LPIPS"):
        name = extractor.partition(",")[0]
        yield f"Diversity is measured by {name}, which stands in for LPIPS: --lpips FILE takes LPIPS itself."
    left_out, reserved = {}, {}  # (what, why) -> rungs; why -> (name of a score -> rungs)
    for result in results:
        for reason in result.skipped.items():
            left_out.setdefault(reason, {})[result.rung.title] = None
        for name, score in result.scores.items():
            if score["reservation"]:
                names = reserved.setdefault(score["reservation"], {})
                names.setdefault(title_of(name), {})[result.rung.title] = None
    for (what, why), rungs in left_out.items():
        yield f"Left out{_of(rungs, results)}: {what}, since {why}."
    for why, names in reserved.items():
        for rungs in dict.fromkeys(tuple(rungs) for rungs in names.values()):
            those = ", ".join(name for name, own in names.items() if tuple(own) == rungs)
            yield f"No headline{_of(rungs, results)}: {those}, since {why}."


def _of(rungs, results):
    """The rungs that a sentence is about, unless it is about all that have scores."""
    scored = dict.fromkeys(result.rung.title for result in results if result.scores)
    return "" if set(rungs) == set(scored) else f" of {', '.join(map(repr, rungs))}"


def _rungs(ladder):
    rows = [_row(["rung", "what it has more", "flags"], "th")]
    for rung in ladder.rungs:
        flags = f"<code>{html.escape(' '.join(rung.flags))}</code>"
        rows.append(
            f"<tr><td>{html.escape(rung.title)}</td><td class=words>{html.escape(rung.adds)}</td>"
            f"<td class=words>{flags}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _table(ladder, results, names, firsts):
    """A row for each rung and a column for each measure."""
    rows = [_row(["rung", *(_title(name, firsts) for name in names)], "th")]
    for rung in ladder.rungs:
        own = of_rung(results, rung)
        found = spreads(own)
        failed = sum(bool(result.failure) for result in own)
        title = html.escape(rung.title)
        if failed:
            title += f" <small>{failed} of {len(own)} failed</small>"
        rows.append(_row([title, *(_cell(name, found.get(name), len(own)) for name in names)]))
    real = [firsts[name]["real"] if name in firsts else None for name in names]
    rows.append(
        _row(["<em>real</em>", *("" if value is None else f"<em>{value:.4g}</em>" for value in real)])
    )
    return f"<table>{''.join(rows)}</table>"


def _title(name, firsts):
    if name in OWN_TITLES:
        return OWN_TITLES[name]
    return html.escape(title_of(name)) + (" ↓" if firsts[name]["better"] == "lower" else " ↑")


def _cell(name, spread, runs):
    if spread is None:
        return ""
    text = _shown(name, spread.median)
    if spread.number > 1:
        text += f" <small>{_shown(name, spread.low)} to {_shown(name, spread.high)}</small>"
    return text + (f"<br><small>{spread.number} of {runs} seeds</small>" if spread.number < runs else "")


def _shown(name, value):
    return f"{value / 1e6:.0f}" if name == "peak_memory" else f"{value:.4g}"


def _failures(results):
    failed = [result for result in results if result.failure]
    if not failed:
        return ""
    rows = [_row(["run that failed", "reason"], "th")]
    for result in failed:
        name = html.escape(f"{result.rung.title}, seed {result.seed}")
        rows.append(f"<tr><td>{name}</td><td class=words>{html.escape(result.failure)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _protocols(firsts):
    rows = [
        f"<tr><td>{html.escape(title_of(name))}</td><td class=words>"
        + html.escape("; ".join(f"{key}: {value}" for key, value in score["protocol"].items()))
        + "</td></tr>"
        for name, score in firsts.items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _row(cells, cell="td"):
    return f"<tr>{''.join(f'<{cell}>{each}</{cell}>' for each in cells)}</tr>"
