"""A page to draw with a model: `python -m sd_tf.demo` (extra `demo`).

`page.py` is what users see, `actions.py` what happens when they use it, `drawing.py` draws for one after the
other, `limits.py` is what a stranger may ask for.

`server.py` serves it. What is sent passes one gate, `gate.py`, which knows what may be asked: `hosts.py` by
whose pages, `bodies.py` in how many bytes, `fields.py` with which values. `files.py` keeps the pictures,
`answers.py` what is the same for everybody; `listeners.py` knows who waits for a drawing, `connections.py`
how long a connection may be silent, and `ending.py` leaves nothing behind.
"""
