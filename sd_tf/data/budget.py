"""Memory that several threads share: whoever needs some of it waits until there is so much."""

import contextlib
import threading

from sd_tf.errors import InputError


class Budget:
    """So many bytes for all threads together.

    Args:
        most: bytes.
    """

    def __init__(self, most: int):
        self.most, self._free, self._changed = most, most, threading.Condition()

    @contextlib.contextmanager
    def taking(self, size: int):
        """Waits until so many bytes are free, and has them inside. Not to be used within itself.

        Raises:
            InputError: there are never so many.
        """
        if size > self.most:
            raise InputError(
                f"takes {size // 10**6:,} MB of memory to decode, of which {self.most // 10**6:,} are the "
                "most: scale it down, or save it as a PNG"
            )
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()
