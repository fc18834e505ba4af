"""A model over marked images: from what is asked for to scores, and to a verdict."""
