"""Aggregation rules and server optimizers: pure functions over blocks of coordinates."""
