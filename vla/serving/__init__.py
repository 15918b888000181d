"""Serves a policy to remote robots over openpi's WebSocket protocol."""
