"""SASRec."""

from dataclasses import dataclass
from typing import Any, ClassVar

from starec_eval.rankers.sequential import Sequential


@dataclass(kw_only=True)
class SASRec(Sequential):
    """Self-attention over the history (Kang and McAuley 2018, "Self-attentive sequential recommendation").

    Theirs is trained by binary cross-entropy against one negative; this, as RecBole's, by cross-entropy over all items.
    """

    name: ClassVar[str] = "sasrec"
    layers: int = 2
    heads: int = 2
    dropout: float = 0.4

    def build(self, torch: Any, n_items: int) -> Any:
        """Item and place embeddings, and pre-norm causal blocks."""
        nn = torch.nn
        block = nn.TransformerEncoderLayer(
            self.size, self.heads, 4 * self.size, self.dropout, "gelu", batch_first=True, norm_first=True
        )
        # Inside the attention and the wide layer dropout drew a third of the time, and gained nothing.
        block.self_attn.dropout = block.dropout.p = 0.0
        net = nn.ModuleDict(
            {
                "item": nn.Embedding(n_items + 1, self.size, padding_idx=0),
                "place": nn.Embedding(self.max_length, self.size),
                "dropout": nn.Dropout(self.dropout),
                "blocks": nn.TransformerEncoder(block, self.layers, nn.LayerNorm(self.size), False),
            }
        )
        nn.init.normal_(net["item"].weight, std=self.size**-0.5)
        nn.init.normal_(net["place"].weight, std=self.size**-0.5)
        return net

    def encode(self, torch: Any, net: Any, sequences: Any) -> Any:
        """One causal pass."""
        length = sequences.shape[1]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(length)
        hidden = net["item"](sequences) + net["place"](torch.arange(length))
        return net["blocks"](net["dropout"](hidden), mask=mask, is_causal=True)
