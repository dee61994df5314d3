"""The standard endpoints (forward auth, OAuth, OpenAPI), with third-party clients and gateways."""
