"""grit-runtime: an OCI runtime in front of another one that makes GPU containers freeze and come back."""

VERSION = "0.1.0"
