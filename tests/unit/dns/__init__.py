"""Tests of enforcer/dns/."""
