"""Tests of bench/ in network namespaces."""
