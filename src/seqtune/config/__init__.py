"""The typed configuration: a frozen spec per axis, read whole, with every problem reported at once."""
