"""A module that imports one that is not there."""

import gone  # type: ignore[import-not-found]  # noqa: F401
