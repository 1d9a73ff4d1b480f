"""A page to draw with a model: `python -m sd_tf.demo` (extra `demo`).

`limits.py` is what a stranger may ask for, `drawing.py` draws for one after the other, `page.py` is what they
see, `server.py` what of HTTP reaches it. Only the last two know Gradio.
"""
