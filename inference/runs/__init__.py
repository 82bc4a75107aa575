"""
What the commands share: the folder of a run and what lies where, atomic files, checkpoints, progress, exits.
"""
