"""The table, the plot and the list of what was measured."""

import json
import os
import platform
import statistics
from importlib import metadata
from pathlib import Path

from benchmarks.workloads import WORKLOADS

LIBRARIES = (
    "tensorflow",
    "keras",
    "torch",
    "diffusers",
    "keras-cv",
    "openvino",
    "minimagen",
    "imagen-pytorch",
)


def write_report(results, folder: Path):
    """Writes `results.json`, `results.md` and `results.png` of `measure`'s results."""
    rows = summaries(results)
    keys = ("workload", "variant", "median_s", "peak_share", "peak_memory_mb")
    entries = [{key: row[key] for key in keys} for row in rows if "skipped" not in row]
    (folder / "results.json").write_text(json.dumps(entries, indent=2) + "\n")
    (folder / "results.md").write_text(table(rows))
    plot([row for row in rows if "skipped" not in row and row["workload"] != "peak"], folder / "results.png")


def summaries(results):
    """Each result with its median, its ratio to the fastest of the others, and its share of the peak."""
    rows = []
    for result in results:
        row = {"workload": result["workload"], "variant": result["variant"]}
        if "skipped" in result:
            rows.append({**row, "skipped": result["skipped"]})
            continue
        seconds = sorted(result["seconds"])
        row |= {"median_s": statistics.median(seconds), "fastest_s": seconds[0], "slowest_s": seconds[-1]}
        row["peak_memory_mb"] = round(result["peak_memory_mb"])
        rows.append(row)
    rates = {precision: _peak(results, precision) for precision in ("float32", "bfloat16")}
    for row in rows:
        if "skipped" in row:
            continue
        of_workload = [r for r in results if r["workload"] == row["workload"]]
        flops = max((r.get("flops") or 0 for r in of_workload), default=0)
        rate = rates["bfloat16" if "bfloat16" in row["variant"] else "float32"]
        row["peak_share"] = round(flops / row["median_s"] / rate, 3) if flops and rate else None
        peers = [r for r in rows if r["workload"] == row["workload"] and "skipped" not in r and not _ours(r)]
        fastest = min((r["median_s"] for r in peers), default=None)
        row["ratio"] = fastest / row["median_s"] if fastest else None
    return rows


def _ours(row):
    return row["variant"].startswith("sd_tf")


def _peak(results, precision):
    """FLOP per second of the fastest matrix product; None where there is none."""
    medians = [
        statistics.median(r["seconds"])
        for r in results
        if r["workload"] == "peak" and r["variant"].endswith(precision) and "skipped" not in r
    ]
    return 2 * WORKLOADS["peak"].sizes["side"] ** 3 / min(medians) if medians else None


def table(rows):
    """The results in Markdown."""
    lines = [f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}; {_versions()}", ""]
    for name in dict.fromkeys(row["workload"] for row in rows):
        lines += [f"## {name}: {WORKLOADS[name].title}", ""]
        lines += ["| variant | median | fastest to slowest | times the fastest peer | of the peak | memory |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
        for row in (row for row in rows if row["workload"] == name):
            if "skipped" in row:
                lines.append(f"| {row['variant']} | not run: {row['skipped']} | | | | |")
                continue
            ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
            share = f"{100 * row['peak_share']:.0f} %" if row["peak_share"] else ""
            lines.append(
                f"| {row['variant']} | {_duration(row['median_s'])} | {_duration(row['fastest_s'])} to "
                f"{_duration(row['slowest_s'])} | {ratio} | {share} | {row['peak_memory_mb']} MB |"
            )
        lines.append("")
    return "\n".join(lines)


def _duration(seconds):
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


def _versions():
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def plot(rows, file: Path):
    """Medians as bars, a panel for each workload, ours in another colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["workload"] for row in rows))
    if not names:
        return
    counts = [sum(row["workload"] == name for row in rows) for name in names]
    figure, panels = plt.subplots(
        len(names),
        1,
        figsize=(8, sum(counts) * 0.3 + len(names) * 0.9),
        height_ratios=[count + 1 for count in counts],
        squeeze=False,
        layout="constrained",
    )
    for name, panel in zip(names, panels[:, 0], strict=True):
        shown = [row for row in rows if row["workload"] == name]
        bars = panel.barh(
            [row["variant"] for row in shown],
            [row["median_s"] for row in shown],
            color=["tab:orange" if _ours(row) else "tab:gray" for row in shown],
        )
        panel.bar_label(bars, [f" {_duration(row['median_s'])}" for row in shown], fontsize=8)
        panel.set_title(f"{name}: {WORKLOADS[name].title}", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.set_xlabel("seconds, median", fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
