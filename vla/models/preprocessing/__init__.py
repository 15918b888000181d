"""What a vision encoder is shown of an image, and the tokens that stand for it, as each family was trained.

`view.py` draws, `frames.py`, `native.py` and `tiles.py` say what (one frame, a frame of the image's own shape, several
frames), `markup.py` writes the tokens, `settings.py` reads and saves them, `released.py` reads those of a checkpoint,
and `chat_template.py` its format of conversations.
"""
