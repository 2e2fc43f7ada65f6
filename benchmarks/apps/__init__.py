"""Flask apps for gunicorn that get their answer from an echo server, whose port is in ``ECHO_PORT``."""
