"""The settings of gunicorn."""

worker_class = "gevent"
workers = 1
loglevel = "error"
# Clients keep their connections while they send requests.
keepalive = 60
# A worker that stops does not wait for the clients.
graceful_timeout = 1
# Otherwise, recent gunicorn versions create a socket in the home directory. Older versions ignore this setting.
control_socket_disable = True
