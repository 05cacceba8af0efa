"""The reading routes, by subject; :func:`..reading.reading_routes` puts them together."""
