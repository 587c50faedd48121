"""Attacks as a library: what colluding clients send, each with the paper that describes it."""
