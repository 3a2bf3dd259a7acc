"""Tests of enforcer/config/."""
