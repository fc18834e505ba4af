"""What earlier probes left: activations, scores, results, and the fastest way to run a model."""
