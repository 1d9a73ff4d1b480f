"""Whose pages may ask: names under which the server is known, and those of pages that a browser shows."""

import ipaddress
import re

NETLOC = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")


class Hosts:
    """Against pages of others that reach the server through a visitor's browser.

    A page whose name its owner suddenly resolves to this machine (DNS rebinding) sends that name as Host,
    and a page of another site sends its own as Origin: neither is answered.

    Args:
        listening: `--host`. An address of one's own is asked for by it, or by this machine's other names
            for itself; all addresses by any address written out, which no stranger's name can stand for.
        allowed: further names, of proxies and of this machine in its network.
    """

    def __init__(self, listening: str, allowed=()):
        self._named = {name.lower().strip("[]").rstrip(".") for name in allowed}
        self._known = {*LOOPBACK, listening.lower(), *self._named}
        self._any_address = listening in EVERYWHERE

    def is_known(self, netloc: str) -> bool:
        """Whether "name", "name:port" or "[address]:port" is one of this server's."""
        name = _name(netloc)
        return name is not None and (name in self._known or (self._any_address and _is_address(name)))

    def is_own_page(self, origin: str, netloc: str) -> bool:
        """Whether an Origin is the page that was asked for under `netloc`, or one whose name is allowed."""
        scheme, _, rest = origin.partition("://")
        if scheme not in ("http", "https"):
            return False
        return rest.lower() == netloc.lower() or _name(rest) in self._named


def _name(netloc):
    found = NETLOC.fullmatch(netloc)
    return None if found is None else found[1].lower().strip("[]").rstrip(".")


def _is_address(name):
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
