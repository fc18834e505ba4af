"""Reports for people and machines: stories, tables, JSON."""
