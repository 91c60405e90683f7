"""The site's side: the handler of one round, and what a site keeps between rounds."""
