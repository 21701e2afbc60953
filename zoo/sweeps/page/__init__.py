"""A sweep as a page of evidence: read its folder, compare its arms, draw, and write HTML, Markdown and CSV."""
