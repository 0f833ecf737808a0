"""Questions that are answered by searching and reading web pages, live or from a file."""
