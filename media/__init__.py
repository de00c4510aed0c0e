"""Sound, from any bridge to any worker."""
