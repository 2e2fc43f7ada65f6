"""What an app can listen to.

Every signal is sent with the app as its sender, inside the app's context, and in a greenlet of its own: a receiver may
take its time, and what it raises is printed and does no harm. A receiver may be async, as a view may. Nothing is sent,
and nothing costs, without a receiver.
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

#: A connection was opened. With it come the `pool` and the `connection`.
connection_opened = _signals.signal("connection-opened")

#: A connection has left the pool to be closed. With it come the `pool`, the `connection` and the `reason`, as in
#: :attr:`PoolStats.discarded <gsocketpool.PoolStats.discarded>` and
#: :attr:`PoolStats.retired <gsocketpool.PoolStats.retired>`.
connection_closed = _signals.signal("connection-closed")

#: A caller did not get a connection in time. With it come the `pool` and the `error`, a
#: :exc:`~gsocketpool.PoolExhaustedError`.
pool_exhausted = _signals.signal("pool-exhausted")
