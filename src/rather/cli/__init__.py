"""The command line: each command is one library call, all are driven by one TOML file with overrides."""
