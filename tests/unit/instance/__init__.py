"""Tests of enforcer/instance/."""
