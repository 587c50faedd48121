"""Floor 6: configuration, wiring, server, command line, embedded PostgreSQL, demo."""
