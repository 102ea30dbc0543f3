"""The command line in click: types and options, mistakes, completion."""
