"""Calls from browsers: a peer connection's transports, sound and words, and the process that carries them."""
