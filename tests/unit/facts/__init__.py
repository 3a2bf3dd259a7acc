"""Tests of enforcer/facts/."""
