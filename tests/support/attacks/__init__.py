"""Attackers on the wire: clients of a real mesh that send something else than they have learnt."""
