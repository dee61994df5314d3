"""The HTTP side: routes, callers, bodies and the form of every failure."""
