"""More eyes on one model: how its reaction depends on the mark, and which images taught it."""
