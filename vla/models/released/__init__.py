"""Released robot policies as models of this project."""
