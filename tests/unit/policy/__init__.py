"""Tests of enforcer/policy/."""
