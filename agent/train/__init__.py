"""Teaching a model its calls: what is said (scripts), how it sounds, and the training itself."""
