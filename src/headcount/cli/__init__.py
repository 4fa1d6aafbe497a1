"""The commands: reading what was typed, explaining what is wrong with it, and calling the rest of the package.

Nothing below this package imports it.
"""
