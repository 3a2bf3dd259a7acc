"""Tests of the loaded programs, which BPF_PROG_TEST_RUN and raw frames run."""
