"""The pools of an app: start them, override them, close them."""

from __future__ import annotations

import atexit
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import gevent
from flask import Flask
from gevent.monkey import get_original

from flask_gsocketpool import _sigterm
from flask_gsocketpool._app_pool import AppPool, QuietEvents
from flask_gsocketpool._request_scope import Scopes
from flask_gsocketpool.config import DEFAULT, PREFIX, AppConfig
from flask_gsocketpool.exceptions import UnknownPoolError
from gsocketpool import InvalidArgumentError, Pool, PoolClosedError, PoolError, PoolNotReadyError

logger = logging.getLogger("gsocketpool")

#: The key in ``app.extensions``.
EXTENSION = "gsocketpool"


def pools_of(app: Flask) -> Pools:
    """Return the pools of `app`.

    :raises RuntimeError: if the extension is not registered on it.
    """
    pools: Pools | None = app.extensions.get(EXTENSION)
    if pools is None:
        raise RuntimeError(f"App {app.name!r} has no pools. Call GSocketPool(app) or GSocketPool().init_app(app).")
    return pools


class Pools(Mapping[str, Pool[Any]]):
    """The pools of an app by name. Each pool is made on first access.

    Under gevent, a process runs in one thread. Under a server with threads, every thread gets its own pools, because
    event loops can't share a pool.
    """

    def __init__(
        self,
        app: Flask,
        config: AppConfig,
        scopes: Scopes,
        shown: Mapping[str, Callable[[], Pool[Any]]] = MappingProxyType({}),
        overrides: Mapping[str, Mapping[object, Any]] = MappingProxyType({}),
    ) -> None:
        self._app = app
        self._config = config
        self.scopes = scopes
        #: A function for each pool that the health endpoint shows beside the app's own.
        self._shown = dict(shown)
        #: The overrides of each pool. The last one is in force.
        self._overrides = {name: dict(of_name) for name, of_name in overrides.items()}
        self._options = {
            name: CallableOptions(pool.options) if callable(pool.options) else pool.options
            for name, pool in config.pools.items()
        }
        # A patched one would be greenlet-local.
        self._of_thread = get_original("threading", "local")()
        _registries.add(self)
        if config.drain_timeout is not None:
            _sigterm.close_after_term(self, config.drain_timeout)
            _sigterm.install_handler()

    def __getitem__(self, name: str) -> Pool[Any]:
        overrides = self._overrides.get(name)
        if overrides:
            override: Pool[Any] = next(reversed(overrides.values()))
            return override
        if self._config.drain_timeout is not None:
            # Again: this process may have been forked after the app was made.
            _sigterm.install_handler()
        try:
            pool: Pool[Any] = self._of_thread.pools[name]
            return pool
        except (AttributeError, KeyError):
            pass
        return self._start(name)

    def _start(self, name: str) -> Pool[Any]:
        """Return this thread's pool called `name`, made now."""
        self._require(name)
        pools = self.of_this_thread()
        # Making a pool may take time. Other callers meanwhile wait for the same greenlet, and get its pool or error.
        maker = pools.makers.get(name)
        if maker is None or maker.ready():
            maker = pools.makers[name] = gevent.spawn(self._make, pools, name)
        error = maker.get()
        if isinstance(error, gevent.GreenletExit):
            # Raised unchanged, it would end the caller silently.
            raise PoolError(f"pool {name!r} was not made: the greenlet that made it was killed")
        if error is not None:
            raise error
        return pools[name]

    def _make(self, pools: ThreadPools, name: str) -> BaseException | None:
        config = self._config.pools[name]
        settings = dict(config.settings)
        initial_connections = settings.pop("initial_connections", 0)
        try:
            if not pools.closed:
                # Record the pool before it opens connections, so that it can be closed meanwhile.
                pool = pools.filling[name] = AppPool(
                    self._app, self.scopes, config.factory, self._options[name], **settings
                )
                pool.fill(initial_connections)
                pools[name] = pool
        except (Exception, gevent.Timeout) as error:
            # The callers raise it. Raised here, it would be printed, too.
            if not pools.closed:
                return error
        finally:
            failed = pools.filling.pop(name, None)
            if failed is not None and name not in pools:
                # Close it in the background: the callers need not wait for that.
                gevent.spawn(failed.close, timeout=0)
        return PoolClosedError(f"pool {name!r} is closed, like all pools of the app") if pools.closed else None

    def fill(self, timeout: float) -> dict[str, BaseException]:
        """Make all pools, and wait until their ``min_connections`` and ``initial_connections`` are open.

        :param timeout: how long to wait, in seconds. The pools open the rest in the background.
        :returns: by name, an error for each pool whose connections are not all open.
        """
        deadline = time.monotonic() + timeout
        fills = {name: gevent.spawn(self._fill, name, deadline) for name in self}
        gevent.joinall(list(fills.values()))
        return {name: fill.value for name, fill in fills.items() if fill.value is not None}

    def _fill(self, name: str, deadline: float) -> BaseException | None:
        late = PoolNotReadyError(f"pool {name!r} is still opening its initial connections")
        try:
            with gevent.Timeout(max(0.0, deadline - time.monotonic()), late):
                pool = self[name]
                # Again: connections that the pool opened before a fork do not belong to this process.
                pool.fill(self._config.pools[name].settings.get("initial_connections", 0))
            pool.wait_ready(max(0.0, deadline - time.monotonic()))
        except (Exception, gevent.Timeout) as error:
            return error
        return None

    def close(self, why: str = "") -> None:
        """Close the pools of this thread for good, including connections in use. Make no more pools.

        :param why: if given, log this reason for every pool that still has connections in use.
        """
        pools = self.of_this_thread().begin_close()
        for pool in pools:
            if why and pool.stats().in_use:
                logger.warning("app %r: closing connections in use, %s: %r", self._app.name, why, pool)
        _close(pools)

    def __contains__(self, name: object) -> bool:
        return name in self._config.pools

    def __iter__(self) -> Iterator[str]:
        return iter(self._config.pools)

    def __len__(self) -> int:
        return len(self._config.pools)

    # Mapping's own would make every pool to compare them.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def override(self, name: str, pool: Any) -> Callable[[], None]:
        """Put `pool` in the place of the pool called `name`, and return a function that undoes this."""
        self._require(name)
        overrides = self._overrides.setdefault(name, {})
        token = object()
        overrides[token] = pool

        def undo() -> None:
            overrides.pop(token, None)

        return undo

    @property
    def config(self) -> AppConfig:
        """The configuration that the pools are made from."""
        return self._config

    def options_of(self, name: str) -> Mapping[str, Any]:
        """Return the options of a pool. If a callable returns them, these are its latest, if any."""
        options = self._options.get(name, {})
        return options.latest if isinstance(options, CallableOptions) else options

    def started(self) -> dict[str, Pool[Any]]:
        """Return the pools that this thread has used so far, or the pools that override them, by name."""
        overriding = {name: self[name] for name, overrides in self._overrides.items() if overrides}
        started = {**self.of_this_thread(), **overriding}
        return {name: started[name] for name in self if isinstance(started.get(name), Pool)}

    def show(self, name: str, pool: Callable[[], Pool[Any]]) -> None:
        """Have :meth:`shown` include the pool that `pool` returns."""
        if name in self or name in self._shown:
            raise InvalidArgumentError("name", name, "a name that no other pool has")
        self._shown[name] = pool

    def shown(self) -> dict[str, Pool[Any]]:
        """Return the pools that this thread has used so far, and those registered by :meth:`show`."""
        return self.started() | {name: pool() for name, pool in self._shown.items()}

    def private_copy(self, name: str, **settings: Any) -> Pool[Any]:
        """Return a new pool like the one called `name`. The caller closes it.

        It opens no connection before the first acquire, and sends no signals.

        :param settings: settings that differ from those of the app's pool.
        """
        self._require(name)
        config = self._config.pools[name]
        changed = {**config.settings, "initial_connections": 0, "min_connections": 0, **settings}
        return AppPool(self._app, self.scopes, config.factory, self._options[name], QuietEvents, **changed)

    def clone(self) -> Pools:
        """Return a new mapping of the same pools, none of them made yet, with the same overrides."""
        return Pools(self._app, self._config, self.scopes, self._shown, self._overrides)

    def of_this_thread(self) -> ThreadPools:
        """Return the pools that this thread has used."""
        try:
            pools: ThreadPools = self._of_thread.pools
        except AttributeError:
            pools = self._of_thread.pools = ThreadPools()
        return pools

    def _require(self, name: str) -> None:
        if name in self._config.pools:
            return
        if name == DEFAULT:
            complaint = f"there is no default pool: set {PREFIX}URL, or {PREFIX}FACTORY and {PREFIX}OPTIONS"
        else:
            complaint = f"there is no pool {name!r}: add it to {PREFIX}POOLS"
        raise UnknownPoolError(f"{complaint} (pools: {', '.join(self._config.pools) or 'none'})")


class CallableOptions:
    """Options that a callable returns. It records the latest, so that errors can mask the secrets among them."""

    def __init__(self, function: Callable[[], Mapping[str, Any]]) -> None:
        self._function = function
        self.latest: Mapping[str, Any] = {}

    def __call__(self) -> Mapping[str, Any]:
        options = self._function()
        if isinstance(options, Mapping):
            self.latest = options
        return options


class ThreadPools(dict[str, Pool[Any]]):
    """The pools that one thread has used."""

    def __init__(self) -> None:
        #: By name, the greenlet that makes, or made, a pool.
        self.makers: dict[str, gevent.Greenlet] = {}
        #: The pools that are still opening their initial connections.
        self.filling: dict[str, Pool[Any]] = {}
        #: Whether the pools are closed. Then no more are made.
        self.closed = False

    def begin_close(self) -> list[Pool[Any]]:
        """Make no more pools, and return those that the caller must close."""
        self.closed = True
        return [*self.values(), *self.filling.values()]


# One atexit handler serves all apps: a handler of each app would keep the app alive. It is safe after a fork, because
# the pools themselves forget the connections of the parent process.
_registries: weakref.WeakSet[Pools] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close every pool that this thread has used, without waiting: the requests are done by now."""
    _close(pool for pools in list(_registries) for pool in pools.of_this_thread().begin_close())


def _close(pools: Iterable[Pool[Any]]) -> None:
    gevent.joinall([gevent.spawn(pool.close, timeout=0) for pool in pools])
