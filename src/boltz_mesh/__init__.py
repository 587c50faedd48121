"""The server of Boltz Mesh: floors 1 to 6 of the house, from pure rules up to the command."""
