"""Tests of enforcer/datapath/."""
