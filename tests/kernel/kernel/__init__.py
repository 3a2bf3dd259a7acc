"""Tests of enforcer/kernel/ in network namespaces."""
