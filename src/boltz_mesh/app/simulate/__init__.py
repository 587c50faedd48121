"""Attacks on a federation, and what the rules, weights and clips of the mesh make of them."""
