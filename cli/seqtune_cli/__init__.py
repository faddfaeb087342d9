"""The `seqtune` command line: one module per command word."""
