"""The service: an HTTP API and a web page over all studies of a store."""
