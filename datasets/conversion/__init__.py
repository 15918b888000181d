"""Episodes of any format into our stores and into LeRobotDatasets: what `vla convert` does."""
