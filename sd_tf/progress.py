"""`tqdm`: a widget in notebooks that support it, elsewhere a line of text."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tqdm asks for ipywidgets, but falls back to text
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
