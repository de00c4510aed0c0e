"""Chats of Moshi's own clients: Kyutai's WebSocket protocol, and the process that carries them."""
