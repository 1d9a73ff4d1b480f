"""The metrics of a training run, which `fit` returns."""

from pathlib import Path

from sd_tf.errors import InputError, unknown
from sd_tf.files import parse_json, read_lines

NOT_METRICS = ("stage", "step", "elapsed", "epoch")  # other entries of a log line


class History:
    """The metrics of a training run, like Keras' `History`.

    Each entry is a mean over about five seconds, read from the run's `log.jsonl`. So earlier starts in the
    same folder are included.

    Attributes:
        history: metric -> a list with one float for each entry, such as "loss", "learning_rate" and
            "images_per_second"; NaN where a stage has no such metric.
        epoch: of each entry, float: examples that the stage has seen, divided by the size of the data set.
            Each stage begins at 0.
        stage: name of the stage of each entry.
        step: of each entry, int, the steps that its stage has taken.
        elapsed: of each entry, float, the seconds that its stage has trained.
    """

    def __init__(self, lines):
        """Takes the lines of `log.jsonl`, as dictionaries."""
        names = dict.fromkeys(name for line in lines for name in line if name not in NOT_METRICS)
        self.history = {name: [_number(line.get(name)) for line in lines] for name in names}
        self.stage = [line["stage"] for line in lines]
        self.step = [line["step"] for line in lines]
        self.elapsed = [line["elapsed"] for line in lines]
        self.epoch = [_number(line.get("epoch")) for line in lines]

    @classmethod
    def of_folder(cls, folder: Path) -> "History":
        """The history of a run's folder; empty if nothing has been logged there."""
        file, lines = Path(folder) / "log.jsonl", []
        if file.exists():
            for text in read_lines(file, root=file.parent):
                try:
                    line = parse_json(text, file)
                except InputError:  # cut off by a kill
                    continue
                if isinstance(line, dict) and _is_entry(line):
                    lines.append(line)
        return cls(lines)

    def plot(self, metric: str = "loss"):
        """Plots a metric over training minutes, one panel for each stage.

        Args:
            metric: a key of `history`.

        Returns:
            The matplotlib figure.

        Raises:
            InputError: there is no such metric, or none at all.
        """
        if not self.history:
            raise InputError("there is nothing to plot: the run has logged nothing")
        if not isinstance(metric, str) or metric not in self.history:
            raise unknown("metric", metric, self.history)
        import matplotlib.pyplot as plt

        stages = list(dict.fromkeys(self.stage))
        figure, axes = plt.subplots(1, len(stages), figsize=(4.5 * len(stages), 3.2), squeeze=False)
        for stage, ax in zip(stages, axes[0], strict=True):
            chosen = [i for i, name in enumerate(self.stage) if name == stage]
            ax.plot([self.elapsed[i] / 60 for i in chosen], [self.history[metric][i] for i in chosen])
            ax.set(title=stage, xlabel="minutes", ylabel=metric)
            ax.grid(alpha=0.3)
        figure.tight_layout()
        plt.close(figure)  # a notebook shows what the cell returns; without this, it would show it twice
        return figure

    def __repr__(self):
        last = dict(zip(self.stage, self.history.get("loss", ()), strict=False))  # none with several players
        said = ", ".join(f"{name} loss {loss:.4f}" for name, loss in last.items() if loss == loss)
        return f"<History of {len(self)} entries{': ' if said else ''}{said}>"

    def __len__(self):
        return len(self.stage)


def _is_entry(line):
    """Whether a line of the log is one of ours, in a folder that may be a stranger's."""
    kinds = {"stage": str, "step": int, "elapsed": (int, float)}
    return all(isinstance(line.get(name), kind) for name, kind in kinds.items())


def _number(value):
    return value if isinstance(value, (int, float)) else float("nan")
