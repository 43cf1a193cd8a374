"""Who answers comparisons: simulated people, reward models, language models, and people."""
