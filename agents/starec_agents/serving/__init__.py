"""Models to try at home: `starec serve`, and starec-nano and SmolLM2's weights."""
