"""Running a model fast, at the same numbers."""
