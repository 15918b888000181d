"""What every layer above uses: files, pictures, HTML, plots, statistics. Nothing here knows a robot or a model."""
