"""What is measured: a module a figure."""
