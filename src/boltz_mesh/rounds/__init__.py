"""Rounds as pure functions: the plan that declares them and the machine that runs them."""
