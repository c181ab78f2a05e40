"""What the four scripts of the root build on, a room per task; imports run one way.

errors → io, synthetic → metrics, runs, cli → viewer → inference → training, volumes, exports
"""
