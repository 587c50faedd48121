"""Floor 0: what both ends of a mesh must agree on. No I/O, no clock, no globals."""
