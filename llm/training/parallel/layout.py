"""How the ranks of a run are laid out, as plain, frozen data. Imports no torch.

Ranks are numbered with `tensor` innermost, whose ranks exchange most, then context, shard, replicate, and
`pipeline` outermost, whose stages exchange least:

    rank = (((pipeline · R + replicate) · S + shard) · C + context) · T + tensor

Experts are divided among neighbours, whatever else these are to each other: tensor ranks first, then context
and shard ranks. All of them have tokens of their own where experts are.
"""

from dataclasses import asdict, dataclass
from math import lcm, prod
from typing import Self

from llm.models.config import ModelConfig


class LayoutError(ValueError):
    """A model, its rows or the number of ranks do not fit a layout."""


@dataclass(frozen=True)
class ParallelLayout:
    """Into how many parts a run is divided, each way. The number of ranks is the product."""

    replicate: int = 1
    """Copies of the sharded model, each with its share of the batch (HSDP)."""
    shard: int = 1
    """Ranks over which parameters, gradients and optimizer state are sharded, each with its share of the
    batch (FSDP).
    """
    context: int = 1
    """Ranks among which a row's tokens are divided."""
    tensor: int = 1
    """Ranks among which heads and feed-forward columns are divided, and tokens outside of them."""
    pipeline: int = 1
    """Stages of consecutive blocks."""
    expert: int = 1
    """Ranks among which the experts of a block are divided. They are of the shard · context · tensor ranks
    that there are in any case, so that it is no factor of the number of ranks.
    """

    def __post_init__(self) -> None:
        for name, parts in asdict(self).items():
            if parts < 1:
                raise LayoutError(f"{name}={parts} must be at least 1")
        if self.neighbours % self.expert:
            raise LayoutError(
                f"expert={self.expert} does not divide the shard={self.shard} · context={self.context} · "
                f"tensor={self.tensor} = {self.neighbours} ranks that hold a model between them: choose one "
                f"of {_divisors(self.neighbours, self.expert)}"
            )

    @classmethod
    def filling(
        cls,
        ranks: int,
        *,
        replicate: int = 1,
        context: int = 1,
        tensor: int = 1,
        pipeline: int = 1,
        expert: int = 1,
    ) -> Self:
        """The layout of so many ranks that shards over all that the other ways leave.

        Raises:
            LayoutError: the other ways do not divide them.
        """
        others = replicate * context * tensor * pipeline
        if ranks % others:
            raise LayoutError(
                f"replicate={replicate} · context={context} · tensor={tensor} · pipeline={pipeline} = "
                f"{others} does not divide {ranks} workers: take a multiple of {others} workers, or divide "
                "the model in fewer ways"
            )
        return cls(replicate, ranks // others, context, tensor, pipeline, expert)

    @property
    def ranks(self) -> int:
        """How many ranks it takes."""
        return prod(self._factors.values())

    @property
    def _factors(self) -> dict[str, int]:
        return {name: parts for name, parts in asdict(self).items() if name != "expert"}

    @property
    def neighbours(self) -> int:
        """Ranks that hold each block once between them."""
        return self.shard * self.context * self.tensor

    @property
    def data(self) -> int:
        """Shares of the batch."""
        return self.replicate * self.shard

    @property
    def copies(self) -> int:
        """Ranks that read the same share."""
        return self.pipeline * self.context * self.tensor

    @property
    def divides_rows(self) -> bool:
        """Whether a rank takes the loss of a part of each row."""
        return self.context * self.tensor > 1

    @property
    def row_multiple(self) -> int:
        """What divides the tokens of a row that can be divided so."""
        return self.context * lcm(self.tensor, 2 if self.context > 1 else 1)

    def place(self, rank: int) -> "Place":
        """Where `rank` stands."""
        rest, tensor = divmod(rank, self.tensor)
        rest, context = divmod(rest, self.context)
        rest, shard = divmod(rest, self.shard)
        pipeline, replicate = divmod(rest, self.replicate)
        return Place(replicate, shard, context, tensor, pipeline, data=replicate * self.shard + shard)

    def check_ranks(self, ranks: int) -> None:
        """Raises LayoutError unless there are as many ranks as the layout takes."""
        if ranks != self.ranks:
            product = " · ".join(f"{name}={parts}" for name, parts in self._factors.items())
            raise LayoutError(
                f"{product} = {self.ranks} ranks, but there are {ranks}: change one of them, or start "
                f"{self.ranks}"
            )

    def check_model(self, config: ModelConfig, seq_len: int) -> None:
        """Raises LayoutError unless a model of this shape can be divided so, in rows of `seq_len` tokens; of
        an encoder-decoder, those that are read.
        """
        if self.expert > 1:
            self._check_expert(config)
        if self.tensor > 1:
            self._check_tensor(config, seq_len)
        if self.context > 1:
            self._check_context(config, seq_len)
        if self.pipeline > 1:
            self._check_pipeline(config)

    def _check_expert(self, config: ModelConfig) -> None:
        if not config.n_experts:
            raise LayoutError(
                f"expert={self.expert}: this model has no experts to divide; use shard, or train one that "
                "has, such as mixtral-8x7b"
            )
        if config.n_experts % self.expert:
            raise LayoutError(
                f"expert={self.expert} does not divide n_experts={config.n_experts}: choose one of "
                f"{_divisors(config.n_experts, self.expert)}"
            )
        shards, up = self.neighbours // self.expert, (1 + config.gated) * config.d_ff
        if config.d_model % shards or up % shards:
            raise LayoutError(
                f"expert={self.expert} leaves {shards} of {self.neighbours} ranks to each part of the "
                f"experts, which do not divide d_model={config.d_model} and the {up} rows of an expert "
                "evenly: raise expert, or replicate"
            )

    def _check_tensor(self, config: ModelConfig, seq_len: int) -> None:
        if config.n_experts and not config.pre_norm:
            raise LayoutError(
                f"tensor={self.tensor}: experts with norm_placement=post are not divided so; use shard"
            )
        divided = {"n_kv_heads": config.n_kv_heads} | ({} if config.n_experts else {"d_ff": config.d_ff})
        for name, value in divided.items():
            if value % self.tensor:
                raise LayoutError(
                    f"tensor={self.tensor} does not divide {name}={value}: choose one of "
                    f"{_divisors(value, self.tensor)}"
                )
        if seq_len % (self.tensor * self.context):
            raise LayoutError(
                f"seq_len={seq_len} is not divisible by tensor={self.tensor} · context={self.context}: "
                f"make it {_rounded(seq_len, self.tensor * self.context)}"
            )

    def _check_context(self, config: ModelConfig, seq_len: int) -> None:
        if seq_len % (2 * self.context):
            raise LayoutError(
                f"seq_len={seq_len} is not divisible by 2 · context={2 * self.context}: every rank takes one "
                f"piece from the front and one from the back; make it {_rounded(seq_len, 2 * self.context)}"
            )

    def _check_pipeline(self, config: ModelConfig) -> None:
        if config.family == "encoder-decoder":
            raise LayoutError(
                f"pipeline={self.pipeline} is not for an {config.family}: use tensor, context or shard"
            )
        if config.position == "relative":
            raise LayoutError(
                f"pipeline={self.pipeline}: position=relative has one table for all blocks, which stages do "
                "not share; use shard"
            )
        if config.n_layers % self.pipeline:
            raise LayoutError(
                f"pipeline={self.pipeline} does not divide n_layers={config.n_layers}: choose one of "
                f"{_divisors(config.n_layers, self.pipeline)}"
            )


@dataclass(frozen=True)
class Place:
    """Which part of each is a rank's."""

    replicate: int
    shard: int
    context: int
    tensor: int
    pipeline: int
    data: int
    """Which share of the batch, out of `ParallelLayout.data`."""


def _divisors(value: int, wanted: int) -> str:
    """Divisors up to twice what was wanted."""
    return ", ".join(str(each) for each in range(1, min(value, 2 * wanted) + 1) if value % each == 0)


def _rounded(value: int, multiple: int) -> str:
    below, above = value // multiple * multiple, -(-value // multiple) * multiple
    return f"{below} or {above}" if below else str(above)
