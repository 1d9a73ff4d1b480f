"""What a family of models gives to a run: a recipe with the stages to train.

A run knows no networks. It asks the recipe for its stages, makes and trains them one after the other, and
has each written into the run's folder. A stage whose result is there already is read instead.
"""

from pathlib import Path

from sd_tf.options import Options
from sd_tf.training.stage import Stage


class PlannedStage:
    """A stage that a run may have to train.

    Attributes:
        name: that of the `Stage` which `make` returns.
        share: share of the run's minutes, relative to those of the other stages.
        result: name of the file or folder that the finished stage writes last into the run's folder.
        batch_size: examples in a step, over all replicas.
        unit: see `Stage`.
    """

    name: str
    share: float
    result: str
    batch_size: int
    unit = 1

    def make(self, run, budget) -> Stage:
        """The stage, ready to train. Called under the strategy's scope.

        Args:
            run: the `Run`: its folder, data set, options, workers.
            budget: the stage's `Budget`. Seconds spent here are reported as the stage's `seconds_spent`.
        """
        raise NotImplementedError

    def finish(self, run, stage: Stage):
        """Writes the trained networks into the run's folder. Called in the chief worker only, with the
        averaged weights in the networks."""
        raise NotImplementedError

    def stopped(self, run, has_learned: bool):
        """Leaves the model fit to draw and to be saved, where the stage ends before it is finished.

        Args:
            run: the `Run`.
            has_learned: whether its networks' weights have changed.
        """

    def restore(self, run):
        """Loads into the model what the finished stage wrote into the run's folder. Called in all workers."""
        raise NotImplementedError

    def outline(self, run) -> tuple[Stage, int]:
        """The stage for a dry run, and the number of its frozen weights.

        Only configurations are read, and networks are made in the default graph, without values.
        """
        raise NotImplementedError


class Recipe:
    """What a family trains, in which order, and what distinguishes two of its runs.

    Attributes:
        family: name of the family on the command line.
        image_size: pixels along a side of the training pictures.
        minutes: training time of a run without a given budget.
        stage_names: names of all stages that a run of the family can have.
        results: file names that mark a folder with a finished model, of this run or another.
        files, folders: names of what the stages write into the run's folder.
        options: instances of the family's own `Options`.
    """

    family: str
    image_size: int
    minutes: float
    stage_names: tuple[str, ...]
    results: tuple[str, ...] = ("model_index.json",)
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    options: tuple[Options, ...] = ()

    @property
    def identity(self) -> dict:
        """Name -> JSON value of what distinguishes two runs, besides the shared options."""
        return {name: value for each in self.options for name, value in each.identity.items()}

    def check_same_base(self, before: dict, folder: Path):
        """Raises `InputError` if the run in the folder started from other weights than it would now.

        Args:
            before: contents of run.json.
            folder: run folder.
        """

    def described(self) -> dict:
        """Name -> value of what a dry run shows besides the options."""
        return {}

    def check(self, run):
        """Raises `InputError` if the run cannot be trained. Called before anything is written."""

    def finished(self, run):
        """Called at the end of the run, when the model holds every stage's result."""

    def read_model(self):
        """Reads what the model has not read yet, before a temporary folder goes, however the run ended."""

    def stages(self, run) -> list[PlannedStage]:
        """The stages of this run in order, finished or not."""
        raise NotImplementedError

    def stages_before(self, run) -> list[PlannedStage]:
        """The stages before those of this run: it takes the networks of those that are finished."""
        return []

    def result(self, folder: Path) -> str:
        """Name of the file that the whole run writes last into that folder."""
        return self.results[0]
