"""The one exception that means "the input is wrong": the command line prints it and exits with 2."""


class InputError(ValueError):
    """Bad input from the user. The message names what is wrong and what to do about it."""
