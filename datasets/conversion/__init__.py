"""Conversion of episodes of any format into stores and LeRobotDatasets (`vla convert`)."""
