"""The commands: read the command line, explain invalid settings, and call the rest of the package.

Nothing below this package imports it.
"""
