//! One workflow a command: build the parts, run, print.
