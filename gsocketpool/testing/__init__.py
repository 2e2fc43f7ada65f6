"""Tools to test connection classes and pools against faults: a flaky server, a torture, a fake pool."""

from gsocketpool.testing._fake import FakePool
from gsocketpool.testing._faults import FAULTS
from gsocketpool.testing._leaks import no_leaks
from gsocketpool.testing._report import TortureError, TortureReport
from gsocketpool.testing._served import ServedConnection
from gsocketpool.testing._server import FlakyServer
from gsocketpool.testing._torture import exchange_line, torture

__all__ = [
    "FAULTS",
    "FakePool",
    "FlakyServer",
    "ServedConnection",
    "TortureError",
    "TortureReport",
    "exchange_line",
    "no_leaks",
    "torture",
]
