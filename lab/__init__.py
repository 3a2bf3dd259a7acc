"""Network-namespace labs, used by the demo, the tests and the benchmarks alike."""
