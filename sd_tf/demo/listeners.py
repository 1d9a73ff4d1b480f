"""Who listens: a drawing begins, and goes on, only while somebody reads what becomes of it."""

import time
from collections.abc import Callable

PATIENCE = 5.0  # seconds between a request and its stream, or the next one
STALLED = 10.0  # seconds in which a reader takes nothing
BACKLOG = 10  # messages that wait for a slow reader


class Listeners:
    """Streams of sessions: one each. What is asked here from other threads are single dictionary look-ups.

    Args:
        waiting: how many messages wait to be sent to a session.
        patience, stalled: seconds.
    """

    def __init__(
        self,
        waiting: Callable[[str], int] = lambda session: 0,
        patience: float = PATIENCE,
        stalled: float = STALLED,
    ):
        self.waiting, self.patience, self._stalled = waiting, patience, stalled
        self._until = {}  # session: when somebody must listen at last
        self._sending = {}  # sessions that are listened to: since when a message waits to be read, or None

    def expect(self, session: str):
        """Somebody asked for something, or stopped listening: they have a while to listen."""
        self._until[session] = time.monotonic() + self.patience

    def opened(self, session: str) -> bool:
        """Notes a stream; False where there is one already."""
        if session in self._sending:
            return False
        self._sending[session] = None
        return True

    def closed(self, session: str):
        """Of the stream."""
        self._sending.pop(session, None)
        self.expect(session)

    def sending(self, session: str, is_waiting: bool):
        """Notes that a message begins to be sent, or is."""
        if session in self._sending:
            self._sending[session] = time.monotonic() if is_waiting else None

    def is_open(self, session: str) -> bool:
        return session in self._sending

    def is_heard(self, session: str) -> bool:
        """Whether somebody listens, and reads what they are sent."""
        if session not in self._sending:
            return False
        since = self._sending.get(session)
        return since is None or time.monotonic() - since < self._stalled

    def is_behind(self, session: str) -> bool:
        """Whether they read so slowly that what is said on the way is better left out."""
        return self.waiting(session) > BACKLOG

    def is_given_up(self, session: str) -> bool:
        """Whether nobody listens and nobody is expected any more; it is forgotten then."""
        if session in self._sending or time.monotonic() < self._until.get(session, 0):
            return False
        self._until.pop(session, None)
        return True

    def wait(self, session: str) -> bool:
        """Until somebody listens; False if they were expected and did not come."""
        while not self.is_heard(session):
            if time.monotonic() >= self._until.get(session, 0):
                return False
            time.sleep(0.02)
        return True
