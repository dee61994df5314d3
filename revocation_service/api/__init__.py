"""The HTTP API of the service: routes, API keys, bodies, and a file for each resource."""
