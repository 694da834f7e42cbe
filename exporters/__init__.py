"""Models for the runtimes of others: a package for each format, all of them on the core alone."""
