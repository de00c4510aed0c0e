"""Moshi and Mimi, in PyTorch: loads official checkpoints unchanged and steps many conversations together.

Knows nothing of calls, sockets or Redis. Paper: Défossez et al. 2024, "Moshi: a speech-text foundation model for
real-time dialogue" (arXiv 2410.00037).
"""
