"""More than one process for the work of a probe or a survey."""
