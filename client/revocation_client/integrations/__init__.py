"""Integrations: one independent module for each framework. The rest of the client imports none of them."""
