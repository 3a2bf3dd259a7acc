"""The output of the benchmark: tables, plots, the documentation's page."""
