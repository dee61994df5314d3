"""How the workers' mirrors follow one Redis and restore what it loses; see docs/architecture.md, "Replication"."""
