"""Turns facts into committed rounds: the driver behind the pure round machine."""
