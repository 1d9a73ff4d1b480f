"""Looks at an installation and its machine, for `python -m sd_tf.doctor`."""
