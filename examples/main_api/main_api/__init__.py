"""A small FastAPI application as users have it, whose tokens can be taken back."""
