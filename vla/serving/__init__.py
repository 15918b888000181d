"""A policy for robots elsewhere, over openpi's WebSocket protocol."""
