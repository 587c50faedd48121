"""What a round costs in privacy: the events, the accountant that adds them up, the budget."""
