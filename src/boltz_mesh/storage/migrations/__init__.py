"""Numbered SQL files, applied in order by `boltz_mesh.storage.migrate`."""
