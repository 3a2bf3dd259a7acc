"""The figures that the benchmark measures, one module each."""
