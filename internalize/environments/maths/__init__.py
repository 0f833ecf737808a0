"""Mathematics problems with a Python tool in a sandbox."""
