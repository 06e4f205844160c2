"""From text to tars of tokens: tokenizer, documents, shards, manifest and verification."""
