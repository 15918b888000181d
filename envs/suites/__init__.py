"""Third-party environments with our observation format and `Embodiment`, described by files in configs/env/."""
