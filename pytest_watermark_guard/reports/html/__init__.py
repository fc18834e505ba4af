"""A run's probes as one HTML file that opens offline (``pytest --wm-html``)."""
