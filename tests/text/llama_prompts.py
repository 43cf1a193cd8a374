"""What llama.cpp and we are asked alike: with numbers, accents and code in it."""

PROMPTS = [
    "Name a tree.",
    "What is 12 plus 30?",
    "Write a haiku about rain.",
    "Who wrote Hamlet?",
    "List three fruits.",
    "Explain gravity to a child.",
    "Translate 'good morning' to French.",
    "What's the capital of Mongolia?",
    "Give me 2 reasons to sleep 8 hours.",
    "Define photosynthesis.",
    "Tell me a joke.",
    "How do I boil an egg?",
    "What year is 1999 + 1?",
    "Spell 'necessary'.",
    "Why is the sky blue?",
    "Suggest a name for a cat.",
    "What does HTTP 404 mean?",
    "Schreibe einen Satz über Bäume.",
    "¿Qué hora es?",
    "Write Python: print 3 numbers.",
]
