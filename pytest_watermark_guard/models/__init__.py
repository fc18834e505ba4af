"""From a model, or a spec that names one, to its logits and features."""
