"""Connectors let a pool handle the connections of client libraries. Each is a module, imported only when used."""

from gsocketpool.connectors._base import Connector

__all__ = ["Connector"]
