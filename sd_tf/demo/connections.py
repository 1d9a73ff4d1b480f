"""Connections that cannot be held for nothing: heads, bodies and answers that do not move end in time."""

from h11 import LocalProtocolError
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 512
HEAD_SECONDS = 10.0  # in which a request's head arrives, from the connection or the answer before
READ_SECONDS = 30.0  # in which what waits to be read is read


class TimedConnection(H11Protocol):
    """uvicorn's, of one client, with limits of time.

    When there are too many, the oldest of those makes room whose client has not sent its request yet, or does
    not read the answer: those who open many and do nothing shut nobody out.
    """

    def connection_made(self, transport):
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # all that waits to be read is known as such at once
        self._limit = self._reading_limit = None
        self._wait_for_head()
        self._make_room()

    def _make_room(self):
        others = [each for each in self.connections if each is not self and not each.transport.is_closing()]
        if len(others) >= MOST_CONNECTIONS:
            idle = [each for each in others if each.is_idle()]
            min(idle, key=lambda each: each._waits_since, default=self).end()

    def is_waiting(self) -> bool:
        """Whether no request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def is_idle(self) -> bool:
        """Whether the client is the one who is waited for."""
        return self.is_waiting() or self.cycle.more_body or self._reading_limit is not None

    def _wait_for_head(self):
        self._waits_since = self.loop.time()
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self.loop.call_later(HEAD_SECONDS, self._end_if_waiting)

    def _end_if_waiting(self):
        if self.is_waiting():
            self.end()

    def on_response_complete(self):
        self._wait_for_head()  # first: the next request may be there already
        super().on_response_complete()

    def send_400_response(self, message):
        if not self.is_waiting():  # what would still be answered to the request before is not sent any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(message)
        except LocalProtocolError:  # an answer has begun already
            self.end()

    def pause_writing(self):
        super().pause_writing()
        if self._reading_limit is None:
            self._reading_limit = self.loop.call_later(READ_SECONDS, self.end)

    def resume_writing(self):
        super().resume_writing()
        if self._reading_limit is not None:
            self._reading_limit.cancel()
            self._reading_limit = None

    def end(self):
        """At once, whatever was still to be sent."""
        self.transport.abort()

    def connection_lost(self, exc):
        for limit in (self._limit, self._reading_limit):
            if limit is not None:
                limit.cancel()
        super().connection_lost(exc)
