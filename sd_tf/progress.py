"""The progress bar of long work: a widget in a notebook that can show one, elsewhere a line of text."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tqdm asks for ipywidgets where a line of text does as well
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
