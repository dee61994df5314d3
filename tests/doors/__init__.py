"""The standard doors: forward auth, OAuth revocation and introspection, OpenAPI; with foreign clients and gateways."""
