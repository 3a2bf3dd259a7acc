"""Tests of enforcer/datapath/ in network namespaces."""
