"""What was measured: tables, plots, the page."""
