"""The control loop of a robot, with its action queue, safety filter and inference workers."""
