"""The pools of an app, and their end."""

from __future__ import annotations

import atexit
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import gevent
from flask import Flask
from gevent.monkey import get_original

from flask_gsocketpool import _sigterm
from flask_gsocketpool._app_pool import AppPool, QuietEvents
from flask_gsocketpool._request_scope import Scopes
from flask_gsocketpool.config import DEFAULT, PREFIX, AppConfig
from gsocketpool import InvalidArgumentError, Pool, PoolClosedError, PoolError, PoolNotReadyError

logger = logging.getLogger("gsocketpool")

#: The key in ``app.extensions``.
EXTENSION = "gsocketpool"


def pools_of(app: Flask) -> Pools:
    """Return the pools of `app`.

    :raises RuntimeError: if it was not registered.
    """
    pools: Pools | None = app.extensions.get(EXTENSION)
    if pools is None:
        raise RuntimeError(f"App {app.name!r} has no pools. Call GSocketPool(app) or GSocketPool().init_app(app).")
    return pools


class UnknownPoolError(PoolError, KeyError):
    """The app has no pool of that name."""

    def __str__(self) -> str:
        # A KeyError shows the repr of what it was given.
        return str(self.args[0])


class Pools(Mapping[str, Pool[Any]]):
    """The pools of an app by name, each made when it is first asked for.

    Under gevent all of a process runs in one thread. Under a server with threads, every thread gets pools of its own,
    for a pool can't be shared between event loops.
    """

    def __init__(self, app: Flask, config: AppConfig, scopes: Scopes) -> None:
        self._app = app
        self._config = config
        self.scopes = scopes
        #: What returns each pool that is shown and is not the app's.
        self._shown: dict[str, Callable[[], Pool[Any]]] = {}
        #: What has taken the place of each pool, the last one in force.
        self._overrides: dict[str, dict[object, Any]] = {}
        self._options = {
            name: Remembering(pool.options) if callable(pool.options) else pool.options
            for name, pool in config.pools.items()
        }
        # Patched, it would be local to a greenlet.
        self._of_thread = get_original("threading", "local")()
        _alive.add(self)
        if config.drain_timeout is not None:
            _sigterm.close_after_term(self, config.drain_timeout)
            _sigterm.listen()

    def __getitem__(self, name: str) -> Pool[Any]:
        overrides = self._overrides.get(name)
        if overrides:
            override: Pool[Any] = next(reversed(overrides.values()))
            return override
        if self._config.drain_timeout is not None:
            # Again, for this may be a process that was forked after the app was made.
            _sigterm.listen()
        try:
            pool: Pool[Any] = self._of_thread.pools[name]
            return pool
        except (AttributeError, KeyError):
            pass
        return self._start(name)

    def _start(self, name: str) -> Pool[Any]:
        """Make the pool called `name` for this thread, and return it."""
        self._require(name)
        pools = self.of_this_thread()
        # Making one may take time. Callers that ask for it meanwhile wait for the same one, or for the same error.
        making = pools.making.get(name)
        if making is None or making.ready():
            making = pools.making[name] = gevent.spawn(self._make, pools, name)
        error = making.get()
        if isinstance(error, gevent.GreenletExit):
            # Raised as it is, it would end the caller without a word.
            raise PoolError(f"pool {name!r} was not made, for the greenlet that was making it was killed")
        if error is not None:
            raise error
        return pools[name]

    def _make(self, pools: PoolsOfThread, name: str) -> BaseException | None:
        config = self._config.pools[name]
        settings = dict(config.settings)
        initial_connections = settings.pop("initial_connections", 0)
        try:
            if not pools.closed:
                # It is noted before it opens them, so that it can be closed meanwhile.
                pool = pools.unfinished[name] = AppPool(
                    self._app, self.scopes, config.factory, self._options[name], **settings
                )
                pool.fill(initial_connections)
                pools[name] = pool
        except (Exception, gevent.Timeout) as error:
            # For the callers. Raised here, it would be printed as well.
            if not pools.closed:
                return error
        finally:
            unfinished = pools.unfinished.pop(name, None)
            if unfinished is not None and name not in pools:
                # In the background, for the callers need not wait for what it has opened to be closed.
                gevent.spawn(unfinished.close, timeout=0)
        return PoolClosedError(f"pool {name!r} is closed, as all of the app's are") if pools.closed else None

    def fill(self, timeout: float) -> dict[str, BaseException]:
        """Make all pools, and wait until their ``min_connections`` and ``initial_connections`` are open.

        :param timeout: the most seconds to wait. What is not open by then is opened in the background.
        :returns: an error for each pool whose connections are not open, by its name.
        """
        deadline = time.monotonic() + timeout
        filling = {name: gevent.spawn(self._fill, name, deadline) for name in self}
        gevent.joinall(list(filling.values()))
        return {name: one.value for name, one in filling.items() if one.value is not None}

    def _fill(self, name: str, deadline: float) -> BaseException | None:
        late = PoolNotReadyError(f"pool {name!r} still opens its initial connections")
        try:
            with gevent.Timeout(max(0.0, deadline - time.monotonic()), late):
                pool = self[name]
                # Those that the pool has opened before a fork are not this process's.
                pool.fill(self._config.pools[name].settings.get("initial_connections", 0))
            pool.wait_ready(max(0.0, deadline - time.monotonic()))
        except (Exception, gevent.Timeout) as error:
            return error
        return None

    def close(self, why: str = "") -> None:
        """Close the pools of this thread for good, and connections in use under their users. No more pools are made.

        :param why: If given, log this reason for every pool that still has connections in use.
        """
        pools = self.of_this_thread().shut()
        for pool in pools:
            if why and pool.stats().in_use:
                logger.warning("app %r: closing what is in use, %s: %r", self._app.name, why, pool)
        _close(pools)

    def __contains__(self, name: object) -> bool:
        return name in self._config.pools

    def __iter__(self) -> Iterator[str]:
        return iter(self._config.pools)

    def __len__(self) -> int:
        return len(self._config.pools)

    # Not a mapping's, which would make every pool to compare them.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def override(self, name: str, pool: Any) -> Callable[[], None]:
        """Put `pool` in the place of the one called `name`, and return a function that undoes this."""
        self._require(name)
        overrides = self._overrides.setdefault(name, {})
        token = object()
        overrides[token] = pool

        def undo() -> None:
            overrides.pop(token, None)

        return undo

    @property
    def config(self) -> AppConfig:
        """Return the configuration that the pools are made from."""
        return self._config

    def options_of(self, name: str) -> Mapping[str, Any]:
        """Return the options of a pool. Those that a callable returns are known from its first call on."""
        options = self._options.get(name, {})
        return options.last if isinstance(options, Remembering) else options

    def started(self) -> dict[str, Pool[Any]]:
        """Return the pools that this thread has used so far, or the overrides in their place, by name."""
        overriding = {name: self[name] for name, overrides in self._overrides.items() if overrides}
        started = {**self.of_this_thread(), **overriding}
        return {name: started[name] for name in self if isinstance(started.get(name), Pool)}

    def show(self, name: str, pool: Callable[[], Pool[Any]]) -> None:
        """Have :meth:`shown` return what `pool` returns, too."""
        if name in self or name in self._shown:
            raise InvalidArgumentError("name", name, "a name that no other pool has")
        self._shown[name] = pool

    def shown(self) -> dict[str, Pool[Any]]:
        """Return the pools that this thread has used so far, and those that are shown beside them."""
        return self.started() | {name: pool() for name, pool in self._shown.items()}

    def private_copy(self, name: str, **settings: Any) -> Pool[Any]:
        """Make a pool like the one called `name`, for the caller alone, who closes it.

        It opens nothing before it is asked for a connection, and sends no signals.

        :param settings: what is different about it.
        """
        self._require(name)
        config = self._config.pools[name]
        changed = {**config.settings, "initial_connections": 0, "min_connections": 0, **settings}
        return AppPool(self._app, self.scopes, config.factory, self._options[name], QuietEvents, **changed)

    def clone(self) -> Pools:
        """Return the same pools, none of them made yet."""
        return Pools(self._app, self._config, self.scopes)

    def of_this_thread(self) -> PoolsOfThread:
        """Return the pools that this thread has used."""
        try:
            pools: PoolsOfThread = self._of_thread.pools
        except AttributeError:
            pools = self._of_thread.pools = PoolsOfThread()
        return pools

    def _require(self, name: str) -> None:
        if name in self._config.pools:
            return
        if name == DEFAULT:
            complaint = f"there is no default pool: set {PREFIX}URL, or {PREFIX}FACTORY and {PREFIX}OPTIONS"
        else:
            complaint = f"there is no pool {name!r}: add it to {PREFIX}POOLS"
        raise UnknownPoolError(f"{complaint} (pools: {', '.join(self._config.pools) or 'none'})")


class Remembering:
    """Options that a callable returns, and the last ones: the secrets among these are kept out of errors."""

    def __init__(self, ask: Callable[[], Mapping[str, Any]]) -> None:
        self._ask = ask
        self.last: Mapping[str, Any] = {}

    def __call__(self) -> Mapping[str, Any]:
        options = self._ask()
        if isinstance(options, Mapping):
            self.last = options
        return options


class PoolsOfThread(dict[str, Pool[Any]]):
    """The pools that one thread has used."""

    def __init__(self) -> None:
        #: The greenlet that makes a pool, or has made it, by the pool's name.
        self.making: dict[str, gevent.Greenlet] = {}
        #: The pools that still open their initial connections.
        self.unfinished: dict[str, Pool[Any]] = {}
        #: Whether they are closed, all together.
        self.closed = False

    def shut(self) -> list[Pool[Any]]:
        """End the making of pools, and return the pools that the caller has to close."""
        self.closed = True
        return [*self.values(), *self.unfinished.values()]


# Registered once for all apps, since an atexit handler keeps alive whatever it belongs to. Nothing need be known about
# processes here: what a fork has copied is forgotten by the pools themselves.
_alive: weakref.WeakSet[Pools] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close every pool that this thread has used, without waiting: the requests are done by now."""
    _close(pool for registered in list(_alive) for pool in registered.of_this_thread().shut())


def _close(pools: Iterable[Pool[Any]]) -> None:
    gevent.joinall([gevent.spawn(pool.close, timeout=0) for pool in pools])
