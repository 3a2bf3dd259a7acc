"""Tests of enforcer/daemon/."""
