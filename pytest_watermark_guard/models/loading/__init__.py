"""From a model spec to a model, and to what its pixels must be."""
