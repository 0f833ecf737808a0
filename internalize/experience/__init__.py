"""Written experience: the pool and its edits, who extracts it, who selects it, and how it is shown to the policy."""
