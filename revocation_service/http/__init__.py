"""The HTTP code that the service and the gateway share: serving, the middleware, problems and probes."""
