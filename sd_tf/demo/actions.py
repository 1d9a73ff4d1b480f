"""The page's event handlers: they take values as they were sent, of any type, and return what the page shows.

Only `sd_tf.data.opening` opens pictures. Users are told of bad input by a `gr.Error` or `gr.Warning`, whose
text is HTML. Unexpected errors go to the log.
"""

import base64
import contextlib
import html
import io
import logging
import math
import secrets
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from sd_tf.demo.drawing import Drawings, Drawn
from sd_tf.demo.files import Files
from sd_tf.demo.limits import Limits, checked, enlarged, fitted_mask, fitted_picture
from sd_tf.demo.listeners import Listeners
from sd_tf.errors import InputError, shown
from sd_tf.generation.parameters import KEY, parameters
from sd_tf.images import file_name, png, sheet

CANVAS = 512  # pixels of the longer side where a mask is painted
LARGEST_RANDOM_SEED = 999_999  # short enough to be typed again
SMALL = 128  # sides of pictures whose pixels are shown sharp
SAME = gr.skip()
log = logging.getLogger(__name__)


class Changes(NamedTuple):
    """New values for parts of the page; those left out stay as they are."""

    status: Any = SAME
    preview: Any = SAME
    gallery: Any = SAME
    made: Any = SAME  # [{"file", "settings"}] of each picture
    as_json: Any = SAME
    chosen: Any = SAME  # the number of the selected picture
    details: Any = SAME
    download: Any = SAME


class Actions:
    """The event handlers of one page.

    Args:
        model_name: as shown.
        drawings: `Drawings`.
        limits: `Limits`.
        size: (width, height) of the model's pictures.
        sent: the files that users uploaded.
        drawn: where pictures are written; whoever knows the path of one can fetch it.
        listeners: knows who still waits for a drawing.
    """

    def __init__(
        self,
        model_name: str,
        drawings: Drawings,
        limits: Limits,
        size,
        sent: Files,
        drawn: Files,
        listeners: Listeners,
    ):
        self.model_name, self.drawings, self.limits = model_name, drawings, limits
        self.size, self.sent, self.drawn, self.listeners = size, sent, drawn, listeners
        self.is_small = max(size) <= SMALL

    def draw(
        self,
        prompt,
        negative_prompt,
        num_images,
        steps,
        sampler,
        karras,
        guidance_scale,
        guidance_start,
        guidance_stop,
        seed,
        random_seed,
        begin,
        strength,
        request: gr.Request,
    ):
        """Draws while the client listens; yields `Changes`."""
        yield from self._drawn(
            request.session_hash,
            begin,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=secrets.randbelow(LARGEST_RANDOM_SEED + 1) if random_seed is True else seed,
            num_images=num_images,
            strength=strength,
            steps=steps,
            sampler=sampler,
            karras=karras,
            guidance_scale=guidance_scale,
            guidance_interval=[guidance_start, guidance_stop],
        )

    def draw_pixels(
        self,
        prompt,
        negative_prompt,
        num_images,
        steps,
        sampler,
        karras,
        guidance_scale,
        guidance_start,
        guidance_stop,
        seed,
        random_seed,
        begin,
        strength,
        thresholding,
        request: gr.Request,
    ):
        """As `draw`, with a model that draws pixels."""
        yield from self._drawn(
            request.session_hash,
            begin,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=secrets.randbelow(LARGEST_RANDOM_SEED + 1) if random_seed is True else seed,
            num_images=num_images,
            strength=strength,
            steps=steps,
            sampler=sampler,
            karras=karras,
            guidance_scale=guidance_scale,
            guidance_interval=[guidance_start, guidance_stop],
            thresholding=thresholding,
        )

    def _drawn(self, session, begin, **asked):
        with _errors_shown():
            if not self.listeners.wait(session):
                return
            settings = checked(self.limits, **asked) | self._start_picture(begin)
            for progress in self.drawings.draw(**settings):
                if not self.listeners.is_heard(session):
                    return
                if isinstance(progress, Drawn):
                    yield self._finished(progress, settings)
                elif not self.listeners.is_behind(session):
                    yield self._under_way(progress)

    def _start_picture(self, editor):
        """The arguments of `generate` for image-to-image and inpainting, from the value of the editor."""
        editor = {} if editor is None else editor
        if not isinstance(editor, dict) or not isinstance(editor.get("layers") or [], list):
            raise InputError(f"the picture to start from is {shown(editor)}: give a background and layers")
        background = editor.get("background")
        mask = fitted_mask([self._sent(layer) for layer in editor.get("layers") or []], self.size)
        if background is None:
            if mask.any():
                raise InputError("there are strokes, but no picture below them: open one, or clear them")
            return {}
        image = fitted_picture(self._sent(background), self.size)
        if not mask.any():
            return {"image": image}
        return {"image": image, "mask": mask, "resamples": self.drawings.resamples}

    def _sent(self, file):
        """The path of a file that was uploaded or drawn here. No other file is opened."""
        path = file.get("path") if isinstance(file, dict) else None
        if not self.sent.is_kept(path) and not self.drawn.is_kept(path):
            raise InputError("there is no picture: send a file")
        return path

    def _under_way(self, progress):
        if not progress.steps:
            return Changes("waiting for other drawings, or for the first step")
        share = f"width: {progress.step / progress.steps:.0%}"
        bar = f'step {progress.step} of {progress.steps}<div class="bar"><div style="{share}"></div></div>'
        if progress.guesses is None:
            return Changes(bar)
        page = sheet(progress.guesses, math.ceil(len(progress.guesses) ** 0.5), gap=1, scale=1)
        encoded = io.BytesIO()
        Image.fromarray(page).save(encoded, "PNG" if self.is_small else "JPEG")
        data = base64.b64encode(encoded.getvalue()).decode()
        return Changes(bar, f'<img alt="preview of the pictures" src="data:image;base64,{data}">')

    def _finished(self, drawn, settings):
        for warning in drawn.warnings:
            gr.Warning(html.escape(warning, quote=False))
        made = self._write(drawn.images, settings)
        pictures = [(each["file"], f"seed {each['settings']['seed']}") for each in made]
        number = f"{len(made)} pictures" if len(made) > 1 else "1 picture"
        return self._chosen(made, 0)._replace(
            status=f"{number} in {drawn.seconds:.1f} seconds",
            preview="",
            gallery=pictures,
            made=made,
            as_json=[each["settings"] for each in made],
        )

    def _write(self, images, settings):
        """Writes the pictures, each with its settings inside; returns [{"file", "settings"}]."""
        names = (
            "prompt",
            "negative_prompt",
            "steps",
            "sampler",
            "karras",
            "guidance_scale",
            "guidance_interval",
            "thresholding",
        )
        of_all = {name: settings[name] for name in names if name in settings}
        if "image" in settings:
            mask = "painted" if "mask" in settings else "none"
            of_all |= {"image": "given", "mask": mask, "strength": settings["strength"]}
            of_all |= {"resamples": settings["resamples"]} if "mask" in settings else {}
        made = []
        for number, image in enumerate(images):
            own = {**of_all, "seed": settings["seed"] + number, "model": self.model_name}
            of_a1111 = {KEY: parameters(own, image.shape[:2], own.get("strength"))}
            file = self.drawn.keep(file_name(own["prompt"], own["seed"]), png(image, own | of_a1111))
            made.append({"file": file, "settings": own})
        return made

    def select(self, made, event: gr.SelectData):
        """Shows the settings of the picture that was clicked; returns `Changes`."""
        with _errors_shown():
            return self._chosen(made, event.index)

    def _chosen(self, made, index):
        if not isinstance(index, int) or not 0 <= index < len(made):
            raise InputError(f"there is no picture {shown(index)}: draw first")
        lines = "".join(
            f"<p><span>{name.replace('_', ' ')}</span>{html.escape(str(value))}</p>"
            for name, value in made[index]["settings"].items()
            if value != ""
        )
        return Changes(
            chosen=index,
            details=f"<b>Picture {index + 1} of {len(made)}</b>{lines}",
            download=made[index]["file"],
        )

    def edit(self, made, chosen):
        """Puts the chosen picture into the editor, see `_to_editor`."""
        with _errors_shown():
            if not made:
                raise InputError("there is no picture yet: draw one first")
            return self._to_editor(made[chosen]["file"])

    def open(self, upload):
        """Puts an uploaded picture into the editor, see `_to_editor`."""
        with _errors_shown():
            return self._to_editor(self._sent(upload))

    def _to_editor(self, picture):
        """(the editor's value, its part of the page, unfolded)."""
        large = enlarged(fitted_picture(picture, self.size), CANVAS)
        file = self.drawn.keep("picture.png", png(large))
        return {"background": file, "layers": [], "composite": None}, gr.Accordion(open=True)


@contextlib.contextmanager
def _errors_shown():
    """Turns errors inside into messages on the page."""
    try:
        yield
    except InputError as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
    except Exception:
        log.exception("a request failed")
        raise gr.Error("this failed on the server: the reason is in its log", print_exception=False) from None
