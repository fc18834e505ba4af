"""Making a model blind to watermarks: what to take out of its features, and how."""
