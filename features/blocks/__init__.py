"""Feature blocks by name: what turns probabilities and context into columns."""

from features.blocks.agreement import AGREEMENT
from features.blocks.class_statistics import CLASS_ID, CLASS_PRIOR, CLASS_SIMILARITY
from features.blocks.combinations import COMBINATIONS
from features.blocks.cooccurrence import COOCCURRENCE
from features.blocks.hierarchy import HIERARCHY
from features.blocks.image_columns import IMAGE_STATS, IMAGENET, METADATA
from features.blocks.image_context import IMAGE_CONTEXT
from features.blocks.kernel_ridge import KERNEL_RIDGE
from features.blocks.neighbours import NEIGHBOURS_BLOCK
from features.blocks.probabilities import LOGITS, PROBABILITIES
from features.blocks.ranks import RANKS
from features.blocks.types import Batch, Block, Column, State, Training

BLOCKS: dict[str, Block] = {
    block.name: block
    for block in (
        PROBABILITIES,
        LOGITS,
        COMBINATIONS,
        AGREEMENT,
        RANKS,
        IMAGE_CONTEXT,
        IMAGE_STATS,
        IMAGENET,
        CLASS_SIMILARITY,
        CLASS_PRIOR,
        CLASS_ID,
        COOCCURRENCE,
        NEIGHBOURS_BLOCK,
        KERNEL_RIDGE,
        HIERARCHY,
        METADATA,
    )
}

__all__ = ["BLOCKS", "Batch", "Block", "Column", "State", "Training"]
