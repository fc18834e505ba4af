"""What was found, as plain data, and as tables, pages and figures."""
