"""What a family gives to a run: a recipe, which plans the stages that are left to train.

A run knows no network. It asks the recipe for its stages, makes one after the other, trains each to the end
of its budget, and has it written into the run's folder. A stage whose result lies there is read instead.
"""

from pathlib import Path

from sd_tf.options import Options
from sd_tf.training.stage import Stage


class PlannedStage:
    """A stage that a run may have to train.

    Attributes:
        name: of the stage, the same as that of the `Stage` which `make` returns.
        share: of the run's minutes, beside the shares of the others.
        result: name of the file or folder, in the run's folder, that the finished stage leaves there last.
        batch_size: of all replicas together.
    """

    name: str
    share: float
    result: str
    batch_size: int

    def make(self, run, budget) -> Stage:
        """The stage, ready to be trained. Called under the strategy's scope.

        Args:
            run: the `Run`: its folder, data set, options, workers.
            budget: the stage's `Budget`. What is spent here comes back as the stage's `seconds_spent`.
        """
        raise NotImplementedError

    def finish(self, run, stage: Stage):
        """Writes what was learned into the run's folder. Called in the chief worker alone, with the averaged
        weights in the networks."""
        raise NotImplementedError

    def stopped(self, run, has_learned: bool):
        """Leaves the model fit to draw and to be saved, where the stage ends before it is finished.

        Args:
            run: the `Run`.
            has_learned: whether its networks' weights have changed.
        """

    def restore(self, run):
        """Gives the model what the finished stage left in the run's folder. Called in all workers."""
        raise NotImplementedError

    def outline(self, run) -> tuple[Stage, int]:
        """The stage as a dry run lays it out, and the number of weights that it holds and does not train.

        Nothing is read but configurations, and networks are made in the default graph, without values.
        """
        raise NotImplementedError


class Recipe:
    """What a family trains, in which order, and what two of its runs differ in.

    Attributes:
        family: name of the family, as the command line has it.
        image_size: of the pictures it learns from, pixels along a side.
        minutes: that a run trains where no budget is given.
        stage_names: of all stages that a run of the family can have.
        results: names of files by which a folder is known to hold a finished model, of this run or another.
        files, folders: names of what the stages write into the run's folder.
        options: the family's own `Options`, as they were given.
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
        """Name -> value, as JSON has it, of what two different runs differ in, beside the shared options."""
        return {name: value for each in self.options for name, value in each.identity.items()}

    def check_same_base(self, before: dict, folder: Path):
        """Raises `InputError` where a run began from other weights than it would begin from now.

        Args:
            before: what run.json says.
            folder: of the run.
        """

    def described(self) -> dict:
        """Name -> value of what a dry run shows, beside the options."""
        return {}

    def check(self, run):
        """Raises `InputError` where the run cannot be trained, before anything is written."""

    def finished(self, run):
        """The run has ended, and every stage's result is in the model again."""

    def read_model(self):
        """Reads what the model has not read yet, before a temporary folder goes, however the run ended."""

    def stages(self, run) -> list[PlannedStage]:
        """Those that this run has to have, in order, whether they are done or not."""
        raise NotImplementedError

    def result(self, folder: Path) -> str:
        """Name of the file that the whole run leaves last in that folder."""
        return self.results[0]
