"""Kernels and what this machine can run."""
