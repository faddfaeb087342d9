"""Recipe groups of acme."""
