"""Tests of enforcer/control/."""
