"""Tests of enforcer/inspect/."""
