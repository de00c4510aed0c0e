"""The voice agent: the model, its engine, and the worker that serves them."""
