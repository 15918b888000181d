"""`vla data doctor`: what is wrong with recorded episodes, where, and the command that repairs it.

| module            | finds                                                                                    |
|-------------------|------------------------------------------------------------------------------------------|
| idle.py           | idle beginnings and ends, long pauses                                                     |
| timing.py         | gaps and steps back in the timestamps, another rate than declared                         |
| skipped.py        | dropped frames behind regular timestamps                                                  |
| tracking.py       | an offset between action and state, a delay between action and effect                     |
| motion.py         | jerky episodes, spikes, a state that stands while the robot moves                         |
| components.py     | constant, rarely moving and clipped components, a joint that does not follow its action   |
| outliers.py       | episodes unlike the others, episodes that are there twice                                 |
| cameras.py        | black cameras, frozen and repeated images, exposure jumps                                 |
| colors.py         | red and blue exchanged, images upside down                                                |
| registration.py   | a camera that was moved between episodes                                                  |

Each detector is a function of arrays that returns findings. Thresholds are of two kinds, and a finding needs both: a
size below which the fault does not matter, relative to what the data span, and a distance from the other episodes in
robust standard deviations (`robust.py`), so that what is natural in a data set is no finding in it.
"""
