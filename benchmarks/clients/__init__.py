"""Clients of real servers, over gsocketpool and over what others bring."""
