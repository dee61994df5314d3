"""What the service and the gateway share of HTTP: serving, the middleware, problems and probes."""
