"""How the workers' mirrors follow one Redis and outlive it; the protocol is in docs/architecture.md, "Replication"."""
