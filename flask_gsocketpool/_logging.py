"""Where the lines of the log go in a process that does not configure logging."""

from __future__ import annotations

import logging

from flask.logging import default_handler, has_level_handler

logger = logging.getLogger("gsocketpool")


def use_default_handler() -> None:
    """Have Flask's default handler write the lines, as those of ``app.logger``, unless logging is configured.

    That is decided at the first line, for an app may configure logging after it has registered the extension.
    """
    logger.addFilter(_add_default_handler)


def _add_default_handler(record: logging.LogRecord) -> bool:
    if not has_level_handler(logger):
        logger.addHandler(default_handler)
    return True
