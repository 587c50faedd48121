"""An attack on the mesh's own privacy: canaries in real rounds, and a gradient inversion."""
