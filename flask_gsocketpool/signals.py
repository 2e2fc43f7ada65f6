"""Signals of an app's pools.

The sender of every signal is the app. The receivers run in the app's context, in a greenlet of their own: a receiver
may take its time, and an exception it raises is printed and does no harm. A receiver may be async, as a view may. A
signal without receivers costs nothing.
"""

from __future__ import annotations

from blinker import NamedSignal, Namespace

_signals = Namespace()

#: A connection was opened. Arguments: `pool`, `connection`.
connection_opened: NamedSignal = _signals.signal("connection-opened")

#: A connection has left the pool to be closed. Arguments: `pool`, `connection`, and the `reason`, as in
#: :attr:`PoolStats.discarded <gsocketpool.PoolStats.discarded>` and
#: :attr:`PoolStats.retired <gsocketpool.PoolStats.retired>`.
connection_closed: NamedSignal = _signals.signal("connection-closed")

#: A caller did not get a connection in time. Arguments: `pool`, and the `error`, a
#: :exc:`~gsocketpool.PoolExhaustedError`.
pool_exhausted: NamedSignal = _signals.signal("pool-exhausted")
