"""Vision-language-action models: backbones, action heads, and the processor of their inputs and outputs."""
