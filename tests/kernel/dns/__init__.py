"""Tests of enforcer/dns/ in network namespaces."""
