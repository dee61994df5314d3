"""Tests that run the examples of README.md, client/README.md and docs/ as printed."""
