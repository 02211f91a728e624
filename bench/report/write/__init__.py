"""Writers: Markdown, terminal, CSV, HTML."""
