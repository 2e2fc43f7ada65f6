"""Apps that ask an echo server for their answer, for gunicorn. The server's port is in ``ECHO_PORT``."""
