"""The examples of README.md, client/README.md and docs/, run as they are printed."""
