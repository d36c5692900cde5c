from typing import Literal

Split = Literal["train", "heldout"]
