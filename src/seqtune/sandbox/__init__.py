"""Code that is not ours, run in processes of its own: programs a model wrote, functions of the user."""
