"""The page: its parts, where they stand, and which of `Actions` they lead to."""

import html
import math
from typing import Any, NamedTuple

import gradio as gr

from sd_tf.demo.actions import CANVAS, Actions, Changes
from sd_tf.demo.limits import LONGEST_PROMPT
from sd_tf.diffusion.samplers import SAMPLERS
from sd_tf.diffusion.thresholding import THRESHOLDINGS
from sd_tf.generation.settings import Settings

SESSIONS = 500  # whose pictures are remembered; the least used is forgotten
THEME = gr.themes.Default(
    primary_hue="teal", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
)
CSS = """
.gradio-container {width: 100%; max-width: 1240px !important; margin: auto; padding: 4px 16px !important}
.tight {gap: 8px}
#about h1 {display: inline; font-size: 1.2em; margin-right: .6em}
#about span, #begin-hint, #details span {color: var(--body-text-color-subdued)}
#status, #details {padding: 0 2px}
#status .bar {height: 10px; margin-top: 4px; background: var(--neutral-200)}
#status .bar div {height: 100%; background: var(--primary-500); transition: width .3s}
#preview img {width: 100%; height: 400px; object-fit: contain}
#preview:has(img) + #pictures, #preview:not(:has(img)) {display: none}
#pictures .grid-container {max-width: 372px; margin: auto; gap: 4px}
#pictures .caption-label {padding: 0 4px; font-size: 10px}
#details {font-size: var(--text-sm)}
#details p {display: flex; margin: 1px 0; overflow-wrap: anywhere}
#details span {flex: 0 0 9.5em}
"""
SHARP = "#preview img, #pictures img {image-rendering: pixelated}"
CLEARED = "() => ['', '']"  # status and preview, in the browser
IN_SIGHT = "() => {setTimeout(() => document.querySelector('#begin').scrollIntoView({block: 'center'}), 500)}"
TO_STATUS = "() => document.querySelector('#status').scrollIntoView({block: 'nearest'})"  # on a phone


class Asked(NamedTuple):
    """The parts of the page that say what to draw.

    `draw` is sent the fields from `prompt` to `strength`, and `thresholding` if the model has it.
    """

    prompt: Any
    negative_prompt: Any
    num_images: Any
    steps: Any
    sampler: Any
    karras: Any
    guidance_scale: Any
    guidance_start: Any
    guidance_stop: Any
    seed: Any
    random_seed: Any
    sent: Any  # the editor's value, as it is sent
    strength: Any
    thresholding: Any  # None for a model that has none
    editor: Any
    editor_section: Any
    upload: Any
    draw: Any
    stop: Any


def page(
    actions: Actions, most_steps: int, recommended: Settings, thresholding: str | None = None
) -> tuple[gr.Blocks, str]:
    """The page and its style sheet.

    Args:
        actions: what happens when the page is used.
        most_steps: that the limits and the model's schedule allow.
        recommended: the settings that the page begins with.
        thresholding: the one of `THRESHOLDINGS` that it begins with; None for a model that has none.
    """
    limits, (width, height) = actions.limits, actions.size
    with gr.Blocks(title="sd_tf", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            f"<h1>sd_tf</h1><span>{html.escape(actions.model_name)} draws pictures of {width} × {height} "
            f"pixels, up to {limits.max_images} at once, in up to {most_steps} steps and "
            f"{limits.max_seconds:g} seconds.</span>",
            elem_id="about",
        )
        made, chosen, sent = gr.State([]), gr.State(0), gr.JSON({}, visible="hidden")
        with gr.Row():
            with gr.Column(scale=5, min_width=320, elem_classes="tight"):
                asked = _asked(limits, most_steps, actions.size, sent, recommended, thresholding)
            with gr.Column(scale=6, min_width=320, elem_classes="tight"):
                shown, edit = _shown(made, chosen)
        _connect(actions, asked, shown, edit)
    blocks.state_session_capacity = SESSIONS
    blocks.queue(max_size=limits.max_queue, default_concurrency_limit=1, api_open=False)
    return blocks, CSS + _squares(limits.max_images) + (SHARP if actions.is_small else "")


def _asked(limits, most_steps, size, sent, recommended, thresholding) -> Asked:
    """The left column."""
    prompt = gr.Textbox(
        label="Prompt", placeholder="a red dress", lines=2, max_lines=6, max_length=LONGEST_PROMPT
    )
    negative_prompt = gr.Textbox("", label="Negative prompt", max_lines=4, max_length=LONGEST_PROMPT)
    with gr.Row():
        draw = gr.Button("Draw", variant="primary")
        stop = gr.Button("Stop")
    with gr.Row():
        most = limits.max_images
        num_images = gr.Slider(1, most, min(4, most), step=1, label="Pictures")
        steps = gr.Slider(1, most_steps, min(recommended.steps, most_steps), step=1, label="Steps")
    with gr.Row():
        guidance_scale = gr.Slider(0, 15, recommended.guidance_scale, step=0.1, label="Guidance scale")
        sampler = gr.Dropdown(list(SAMPLERS), value=recommended.sampler, label="Sampler", filterable=False)
    with gr.Row():
        seed = gr.Number(0, precision=0, minimum=0, label="Seed")
        with gr.Column(min_width=160, elem_classes="tight"):
            random_seed = gr.Checkbox(True, label="Another seed each time")
            karras = gr.Checkbox(recommended.karras, label="Karras' levels (not ddim, ddpm, pndm)")
    with gr.Accordion("Guide only some of the steps", open=False), gr.Row():
        from_share, to_share = recommended.guidance_interval
        guidance_start = gr.Slider(0, 1, from_share, step=0.05, label="From this share of them")
        guidance_stop = gr.Slider(0, 1, to_share, step=0.05, label="To this share")
    if thresholding is not None:
        thresholding = gr.Dropdown(
            list(THRESHOLDINGS),
            value=thresholding,
            label="Thresholding: how pixels are kept in range",
            filterable=False,
        )
    with gr.Accordion("Image-to-image and inpainting", open=False) as editor_section:
        upload, editor = _editor(size)
        strength = gr.Slider(0, 1, 0.8, step=0.05, label="Strength: how much of it may change")
    return Asked(
        *(prompt, negative_prompt, num_images, steps, sampler, karras),
        *(guidance_scale, guidance_start, guidance_stop, seed, random_seed, sent, strength, thresholding),
        *(editor, editor_section, upload, draw, stop),
    )


def _editor(size):
    """Where a picture is opened, and painted on."""
    upload = gr.UploadButton("Open a picture", file_types=["image"], size="sm")
    hint = "Paint over what should change. Without strokes, all of the picture may."
    gr.HTML(hint, elem_id="begin-hint")
    factor = max(1, CANVAS // max(size))
    editor = gr.ImageEditor(
        show_label=False,
        sources=None,
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=40, colors=[("#ff00ff", 0.7)], color_mode="fixed"),
        canvas_size=tuple(factor * side for side in size),
        fixed_canvas=True,
        height=400,
        elem_id="begin",
    )
    return upload, editor


def _shown(made, chosen):
    """The right column: the parts that `Changes` names, and the button that draws on a picture."""
    status = gr.HTML("", elem_id="status", min_height=24, apply_default_css=False)
    preview = gr.HTML("", elem_id="preview")
    gallery = gr.Gallery(
        label="Pictures",
        elem_id="pictures",
        height=400,
        object_fit="contain",
        buttons=["download", "fullscreen"],
        interactive=False,
    )
    with gr.Row():
        download = gr.DownloadButton("Download", size="sm")
        edit = gr.Button("Draw on this one", size="sm")
    details = gr.HTML("", elem_id="details", apply_default_css=False)
    with gr.Accordion("Settings of all pictures as JSON", open=False):
        as_json = gr.JSON(label="Settings", show_label=False)
    return Changes(status, preview, gallery, made, as_json, chosen, details, download), edit


def _connect(actions, asked, shown, edit):
    """Says what happens when buttons are pressed."""
    # The editor sends its layers whenever a step of an event changes that it is part of, so it is of none
    # that has many, nor shows their progress.
    pressed = [asked.draw.click, asked.prompt.submit]
    sending = gr.on(pressed, fn=None, js="begin => begin", inputs=asked.editor, outputs=asked.sent)
    fields = list(asked[: Asked._fields.index("strength") + 1])
    has_thresholding = asked.thresholding is not None
    drawing = sending.then(
        actions.draw_pixels if has_thresholding else actions.draw,
        [*fields, asked.thresholding] if has_thresholding else fields,
        list(shown),
        api_name="draw",
        preprocess=False,
        show_progress="minimal",
        show_progress_on=shown.gallery,
        concurrency_limit=1,
    )
    gr.on(pressed, fn=None, js=TO_STATUS)
    private = {"api_visibility": "private", "preprocess": False, "show_progress": "hidden"}
    cleared = {"fn": None, "js": CLEARED, "outputs": [shown.status, shown.preview]}
    drawing.failure(**cleared)
    drawing.success(_show_all, None, shown.gallery, queue=False, **private)
    asked.stop.click(**cleared, cancels=[drawing])
    shown.gallery.select(actions.select, shown.made, list(shown), queue=False, **private)
    to_begin_with = [asked.editor, asked.editor_section]
    aside = private | {"show_progress_on": [asked.upload]}
    edited = edit.click(actions.edit, [shown.made, shown.chosen], to_begin_with, queue=False, **aside)
    edited.success(fn=None, js=IN_SIGHT)
    # One at a time: it takes memory.
    asked.upload.upload(actions.open, asked.upload, to_begin_with, concurrency_limit=1, **aside)


def _squares(max_images):
    """A style sheet by which pictures lie in as many columns as rows."""
    return "".join(
        f"#pictures .grid-container:has(> :nth-child({(n - 1) ** 2 + 1})) "
        f"{{grid-template-columns: repeat({n}, 1fr) !important}}\n"
        for n in range(1, math.ceil(max_images**0.5) + 1)
    )


def _show_all():
    """Instead of the one that was looked at before."""
    return gr.Gallery(selected_index=None)
