"""The reward head: what a frozen language model has in mind after an answer, kept on disk, and a linear score of it."""
