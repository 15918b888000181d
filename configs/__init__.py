"""Configuration files of the commands: a root file for each command, and groups of interchangeable parts."""
