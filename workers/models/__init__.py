"""Where models come from and how text becomes tokens: registry, conversion, loading, template, embedder."""
