"""The loaded programs, run by BPF_PROG_TEST_RUN and by raw frames."""
