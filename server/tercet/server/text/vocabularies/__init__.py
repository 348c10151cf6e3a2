"""Tokenizers from the vocabulary files that folders without tokenizer.json have.

A kind of tokenizer is a row of the table in `kinds`: its files, its special tokens, and what builds it of them.
"""
