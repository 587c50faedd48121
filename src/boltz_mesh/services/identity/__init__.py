"""The mesh authority: who is who. Names and checks both ends share are in `boltz_protocol`."""
