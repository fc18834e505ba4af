"""Where baseline images come from: a folder, a Dataset, an array, or the built-in set."""
