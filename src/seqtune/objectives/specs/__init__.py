"""What a recipe can say about each objective, a file for each. Imports no torch: `build()` imports the functions."""
