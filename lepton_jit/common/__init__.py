"""Help the runtime, the compiler and all above: checks of arguments, names, configurations, files, the terminal.

The package imports the errors, and the element types of the graph IR."""
