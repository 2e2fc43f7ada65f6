"""The errors and the warning of the extension."""

from __future__ import annotations

from flask_gsocketpool._redaction import masked_text
from gsocketpool import PoolError


class ConfigurationError(PoolError, ValueError):
    """A key of an app's configuration is unknown, or its value can't be used."""

    def __init__(self, key: str, problem: str) -> None:
        # The value may be a URL or a secret that belongs elsewhere.
        problem = masked_text(problem)
        super().__init__(key, problem)
        #: The key, as in ``SOCKETPOOL_URL`` or ``SOCKETPOOL_POOLS['cache']['url']``.
        self.key = key
        #: What is wrong with the value, and what is allowed.
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.key} {self.problem}"


class UnknownPoolError(PoolError, KeyError):
    """The app has no pool of that name."""

    def __str__(self) -> str:
        # KeyError would show the repr of the message.
        return str(self.args[0])


class UnreleasedConnectionWarning(RuntimeWarning):
    """A request did not give back a connection, or left work open on its own connection, such as a transaction."""
