"""A small example of a FastAPI application whose tokens can be revoked."""
