"""`vla data doctor`: finds faults in recorded episodes, and proposes commands that repair them.

| module            | finds                                                                                    |
|-------------------|------------------------------------------------------------------------------------------|
| idle.py           | idle beginnings and ends, long pauses                                                     |
| timing.py         | gaps in the timestamps, times that do not increase, a wrong declared rate                 |
| skipped.py        | dropped frames with regular timestamps                                                    |
| tracking.py       | offsets between action and state, delays between action and effect                        |
| motion.py         | jerky episodes, spikes, states that are not updated while the robot moves                 |
| components.py     | constant, rarely moving and clipped components, joints that do not follow their action    |
| outliers.py       | outlier episodes, duplicate episodes                                                      |
| cameras.py        | blank cameras, frozen and repeated images, exposure jumps, images upside down             |
| colors.py         | swapped red and blue channels                                                             |
| registration.py   | a camera that was moved between episodes                                                  |

Each detector is a function of arrays that returns findings. A finding must exceed two thresholds: a minimum size of the
fault relative to the range of the data, and a distance from the other episodes in robust standard deviations
(`robust.py`), so that normal variation of a data set is not reported.
"""
