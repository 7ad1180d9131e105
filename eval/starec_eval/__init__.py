"""One protocol for classical, LLM and agent recommenders (paper section 5)."""
