"""A run's model in the form that somebody else loads."""
