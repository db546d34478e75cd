"""What all storeys use and knows none of them: checks of arguments, names, configurations, files, the terminal."""
