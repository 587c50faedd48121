"""The whole protocol of sealed rounds under faults: real clients' and server's parts, a virtual
clock, a network that loses, delays and repeats, crashes on both sides, hostile clients; and games
against a hostile server.

`python -m tests.simulation.protocol SEED` plays the world of a seed and prints what happens.
"""
