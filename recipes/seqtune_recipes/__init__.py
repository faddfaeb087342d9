"""Recipes shipped with seqtune, composed by Hydra from `pkg://seqtune_recipes`."""
