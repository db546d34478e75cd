"""Help the runtime, the compiler and all above: checks of arguments, names, configurations, files, the terminal.

Of this package it imports the errors alone.
"""
