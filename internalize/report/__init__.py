"""Reports of a run or a study: one view, shown in the terminal, as Markdown, as HTML and as figures."""
