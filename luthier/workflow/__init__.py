"""The only place where stages meet: one file a verb, each a chain that can be read on a page."""
