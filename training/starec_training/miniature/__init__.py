"""The whole science in miniature: a small Llama from scratch, taught, sharpened and judged on two CPU cores."""
