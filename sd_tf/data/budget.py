"""A limit on the memory that several threads use together: a thread waits until what it needs is free."""

import contextlib
import threading

from sd_tf.errors import InputError


class Budget:
    """Bytes that all threads share.

    Args:
        most: how many there are.
    """

    def __init__(self, most: int):
        self.most, self._free, self._changed = most, most, threading.Condition()

    @contextlib.contextmanager
    def taking(self, size: int):
        """Waits until `size` bytes are free, and takes them for the block.

        Blocks must not be nested: two threads could wait for each other for ever.

        Raises:
            InputError: `size` is more than there are.
        """
        if size > self.most:
            raise InputError(
                f"takes {size // 10**6:,} MB of memory to decode, more than the {self.most // 10**6:,} MB "
                "allowed: scale it down, or save it as a PNG"
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
