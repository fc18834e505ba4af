"""Models of other libraries, each with what is known about it without this package."""
