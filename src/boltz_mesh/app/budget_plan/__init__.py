"""What `boltz-mesh budget plan` shows: words and figures for a person, a document for a program."""
