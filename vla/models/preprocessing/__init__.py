"""Image preprocessing: how each family cuts an image into frames, and the tokens that represent it.

`frames.py` (one frame of fixed size), `native.py` (one frame of the image's shape) and `tiles.py` (several frames)
define the frames, and `view.py` draws them. `markup.py` writes the tokens. `settings.py` saves and loads both,
`released.py` reads a checkpoint's image processor, and `chat_template.py` its chat format.
"""
