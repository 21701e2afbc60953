"""Report of a sweep: reading its folder, comparing its arms, and writing plots, HTML, Markdown and CSV."""
