"""The labelling page: people compare in the browser, and their answers go into the store."""
