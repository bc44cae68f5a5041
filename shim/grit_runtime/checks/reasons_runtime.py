"""Reasons of the entry: configuration, the next runtime, the bundle."""

from __future__ import annotations

from grit_runtime.checks import Reason

_CONFIG = "correct the file; /usr/share/grit-runtime/config.toml documents every key"

REASONS = {
    "config-missing": Reason(
        "the configuration {path} does not exist",
        "install it again (apt install --reinstall -o Dpkg::Options::=--force-confmiss grit-runtime), or copy it from "
        "/usr/share/grit-runtime/config.toml",
    ),
    "config-unreadable": Reason("the configuration {path} cannot be read: {error}", "see to the file's permissions"),
    "config-broken": Reason("the configuration {path} is not TOML: {error}", _CONFIG),
    "config-unknown-key": Reason("the configuration {path} has a key that means nothing: {key}", _CONFIG),
    "config-wrong-type": Reason("the key {key} in {path} must be {wanted}", _CONFIG),
    "config-wrong-value": Reason("the key {key} in {path} must be {wanted}", _CONFIG),
    "next-runtime-missing": Reason(
        "the next runtime {path} is not there or cannot be executed",
        "install it, or set next in the table [runtime] of /etc/grit-runtime/config.toml",
    ),
    "next-runtime-is-us": Reason(
        "the next runtime {path} is grit-runtime itself",
        "set next in the table [runtime] of /etc/grit-runtime/config.toml to the runtime behind it",
    ),
    "next-runtime-broken": Reason(
        "the next runtime {path} cannot be executed: {error}", "see to that file: is it a program for this machine"
    ),
    "next-runtime-answer": Reason(
        "the next runtime {path} gave an answer to {question} that is not understood",
        "see what it prints when called by hand; runc and crun are supported",
    ),
    "next-runtime-silent": Reason(
        "the next runtime {path} did not answer {question} within {seconds} seconds",
        "see what it does when called by hand; the machine may be overloaded",
    ),
    "container-unknown": Reason(
        "the next runtime knows no container {id}: {error}",
        "look the ID up in the list of the runtime, with the same --root",
    ),
    "bundle-unreadable": Reason(
        "the bundle's {path} cannot be read: {error}", "name the folder that holds config.json with --bundle"
    ),
    "bundle-unwritable": Reason(
        "the bundle's {path} cannot be written: {error}", "make the bundle writable, or free space on its file system"
    ),
    "config-not-json": Reason(
        "the bundle's {path} is not a JSON object: {error}", "write the bundle again; it was cut short or damaged"
    ),
    "internal-error": Reason(
        "a mistake in grit-runtime: {error} (traceback: {log})", "report it, with that traceback"
    ),
    "interrupted": Reason("the call was ended by {signal}", "call again"),
}
