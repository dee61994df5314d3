"""A small FastAPI application as users write it, whose tokens can be revoked."""
