"""Tests of enforcer/cli/."""
