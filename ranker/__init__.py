"""The pure core: events to evidence to taste to slate, and the learning of it."""
