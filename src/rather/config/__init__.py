"""Settings: what there is to set, and its TOML."""
