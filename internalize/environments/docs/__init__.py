"""Questions about documents: those of the installed Python, or a folder of one's own."""
