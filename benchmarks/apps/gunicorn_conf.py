"""The settings of gunicorn."""

worker_class = "gevent"
workers = 1
loglevel = "error"
# Clients keep their connections for as long as they ask.
keepalive = 60
# And they are not waited for when it is stopped.
graceful_timeout = 1
# Newer versions put a socket into the home directory otherwise; older ones pass over this.
control_socket_disable = True
