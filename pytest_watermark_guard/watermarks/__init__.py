"""Text watermarks: scenarios, seeded draws, rendering, compositing, marked copies on disk."""
