"""Tests of enforcer/constants/."""
