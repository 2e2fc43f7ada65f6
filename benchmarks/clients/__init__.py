"""Clients of real servers, with gsocketpool and with other pools."""
