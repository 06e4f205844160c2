"""Text -> token tars: tokenizer, documents, shards, manifest, verification."""
