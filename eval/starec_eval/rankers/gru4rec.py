"""GRU4Rec."""

from dataclasses import dataclass
from typing import Any, ClassVar

from starec_eval.rankers.sequential import Sequential


@dataclass(kw_only=True)
class GRU4Rec(Sequential):
    """A gated recurrent network over the history (Hidasi et al. 2016, "Session-based recommendations with RNNs").

    Trained by cross-entropy over all items, and with dropout on the embeddings.
    """

    name: ClassVar[str] = "gru4rec"
    hidden: int = 128
    dropout: float = 0.4
    lr: float = 4e-3

    def build(self, torch: Any, n_items: int) -> Any:
        """Item embeddings, one GRU layer, and a projection back to the embeddings' size."""
        nn = torch.nn
        return nn.ModuleDict(
            {
                "item": nn.Embedding(n_items + 1, self.size, padding_idx=0),
                "dropout": nn.Dropout(self.dropout),
                "gru": nn.GRU(self.size, self.hidden, batch_first=True),
                "project": nn.Linear(self.hidden, self.size),
            }
        )

    def encode(self, torch: Any, net: Any, sequences: Any) -> Any:
        """One pass of the GRU."""
        states, _ = net["gru"](net["dropout"](net["item"](sequences)))
        return net["project"](net["dropout"](states))
