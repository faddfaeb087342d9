"""Identity Preference Optimization for seqtune."""
