"""What each function of the page takes: a request's values, held to the types of the parts they come from.

What passes is built anew here, from text, numbers, booleans and paths of files that were given out. Gradio
sees nothing that was sent as it was sent.
"""

import inspect
import re
from typing import NamedTuple

import gradio as gr

from sd_tf.demo.bodies import Refused
from sd_tf.demo.files import Files
from sd_tf.demo.limits import LONGEST_PROMPT, MOST_LAYERS
from sd_tf.errors import InputError, shown
from sd_tf.generation.checks import check_text

LARGEST_NUMBER = 2**53  # beyond it JSON of browsers has no whole numbers
LONGEST_CHOICE = 100  # characters
SESSION = re.compile(r"[0-9A-Za-z_-]{1,64}")
EVENT = re.compile(r"[0-9a-f]{32}")


class Function(NamedTuple):
    """What can be asked for by its number.

    Attributes:
        is_queued: whether it waits for its turn.
        fields: (name, part of the page) of each value that it takes.
        takes_event: whether it is told which picture was clicked.
    """

    is_queued: bool
    fields: list[tuple[str, gr.blocks.Block]]
    takes_event: bool


def functions(blocks: gr.Blocks) -> dict[int, Function]:
    """All of a page, by number.

    Raises:
        TypeError: one takes values of a part for which there is no rule here.
    """
    found = {}
    for number, function in blocks.fns.items():
        if function.fn is None or function.cancels:  # they happen in the browser
            continue
        names = list(inspect.signature(function.fn).parameters)[: len(function.inputs)]
        fields = list(zip(names, function.inputs, strict=True))
        for name, part in fields:
            if type(part) not in RULES:
                raise TypeError(f"{name} is of a {type(part).__name__}, for which there is no rule")
        found[number] = Function(function.queue, fields, function.collects_event_data)
    return found


class Fields:
    """Holds requests to what the functions of a page take.

    Args:
        known: of `functions`.
        sent, drawn: files that a picture may be.
    """

    def __init__(self, known: dict[int, Function], sent: Files, drawn: Files):
        self._known, self._kinds = known, (sent, drawn)

    def asked(self, request: dict, is_queued: bool) -> dict:
        """A request for a function, built anew.

        Args:
            request: JSON.
            is_queued: whether it came where functions are asked for that wait for their turn.

        Raises:
            Refused: it is for no such function, or one of its values has another type.
        """
        number = request.get("fn_index")
        function = self._known.get(number) if type(number) is int else None
        if function is None or function.is_queued != is_queued:
            raise Refused(422, f"there is nothing with the number {shown(number)}")
        data = request.get("data")
        if not isinstance(data, list) or len(data) != len(function.fields):
            raise Refused(422, f"send {len(function.fields)} values as data")
        try:
            values = [
                RULES[type(part)](name.replace("_", " "), value, self._picture)
                for (name, part), value in zip(function.fields, data, strict=True)
            ]
        except InputError as error:
            raise Refused(422, str(error)) from None
        event = _clicked(request.get("event_data")) if function.takes_event else None
        return {
            "fn_index": number,
            "data": values,
            "event_data": event,
            "session_hash": session(request.get("session_hash")),
        }

    def _picture(self, name, value):
        path = value.get("path") if isinstance(value, dict) else None
        if not any(kind.is_kept(path) for kind in self._kinds):
            raise Refused(422, f"{name}: there is no picture {shown(path)} (any more): send it again")
        return {"path": path, "meta": {"_type": "gradio.FileData"}}


def cancelled(request: dict) -> dict:
    """A request to end what was asked for, built anew."""
    number, event = request.get("fn_index"), request.get("event_id")
    if type(number) is not int or not isinstance(event, str) or not EVENT.fullmatch(event):
        raise Refused(422, "say what to cancel: session_hash, fn_index and event_id")
    return {"session_hash": session(request.get("session_hash")), "fn_index": number, "event_id": event}


def session(value) -> str:
    """The name that a browser's tab or a client gave itself."""
    if not isinstance(value, str) or not SESSION.fullmatch(value):
        raise Refused(422, f"session_hash is {shown(value)}: send 1 to 64 letters and digits")
    return value


def _clicked(event):
    index = event.get("index") if isinstance(event, dict) else None
    if type(index) is not int or abs(index) > LARGEST_NUMBER:
        raise Refused(422, "say which picture was clicked: its index")
    return {"index": index, "value": None}


def _text(name, value, _):
    check_text(name, value, LONGEST_PROMPT)
    return value


def _choice(name, value, _):
    if not isinstance(value, str) or len(value) > LONGEST_CHOICE:
        raise InputError(f"{name} is {shown(value)}: give one of its names")
    return value


def _number(name, value, _):
    """None is a field that was emptied in a browser: what it lacks is said where its limits are known."""
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) <= LARGEST_NUMBER:  # which NaN is not either
        raise InputError(f"{name} is {shown(value)}: give a number")
    return value


def _flag(name, value, _):
    if not isinstance(value, bool):
        raise InputError(f"{name} is {shown(value)}: give True or False")
    return value


def _kept_here(name, value, _):
    if value is not None:
        raise InputError(f"{name} is {shown(value)}: the page keeps it itself, send None")
    return None


def _painted(name, value, picture):
    """What an editor holds, without the composite, of which no use is made."""
    if value is None:
        return None
    layers = value.get("layers") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(layers or [], list):
        raise InputError(f"{name} is {shown(value)}: give a background and layers")
    if len(layers or []) > MOST_LAYERS:
        raise InputError(f"{name} has {len(layers)} layers of strokes, of which {MOST_LAYERS} are the most")
    background = value.get("background")
    return {
        "background": None if background is None else picture(name, background),
        "layers": [picture(name, layer) for layer in layers or []],
    }


RULES = {
    gr.Textbox: _text,
    gr.Slider: _number,
    gr.Number: _number,
    gr.Checkbox: _flag,
    gr.Dropdown: _choice,
    gr.State: _kept_here,
    gr.JSON: _painted,
    gr.UploadButton: lambda name, value, picture: picture(name, value),
}
