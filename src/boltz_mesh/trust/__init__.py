"""How much a client's conduct counts in its weight."""
