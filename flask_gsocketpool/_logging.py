"""Write the log with Flask's handler in a process that does not configure logging."""

from __future__ import annotations

import logging

from flask.logging import default_handler, has_level_handler

logger = logging.getLogger("gsocketpool")


def use_default_handler() -> None:
    """Let Flask's default handler write the log, as for ``app.logger``, unless logging is configured.

    This is decided at the first record, because an app may configure logging after it has registered the extension.
    """
    logger.addFilter(_add_default_handler)


def _add_default_handler(record: logging.LogRecord) -> bool:
    if not has_level_handler(logger):
        logger.addHandler(default_handler)
    return True
