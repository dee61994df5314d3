"""The demo's parts, and the walk through them."""
