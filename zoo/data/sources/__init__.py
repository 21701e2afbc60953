"""Sources of documents: the standard library, local files, the Hub."""
