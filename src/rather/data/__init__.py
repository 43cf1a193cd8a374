"""Files in and out: readers (bytes to rows), forms (rows to prompts and comparisons), writers, and their way to the store."""
