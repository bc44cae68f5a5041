"""What we know of CRIU: its image files, its configuration file, its logs and what the installed one can do."""
