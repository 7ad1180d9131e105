"""One protocol for classical, LLM and agent recommenders (paper section 5)."""

import starec_env as starec_env  # modules that moved below are found at their old names
