"""Secure aggregation: graph, keys, masks and shares, for both sides, since they must cancel."""
