"""What a model answers: its logits, its features, and where they are found."""
