"""What `--tokens` says: one tokens artifact, or a mixture of several with a schedule of weights.

web                                          one
web=7,code=3                                 seven samples of web to three of code
web=7,code=3; 2e9: web=5,code=3,math=2       … and after two billion tokens, others
"""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from math import gcd, lcm
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm.data.mixture import Mixture

_SUFFIXES = {"K": 3, "M": 6, "B": 9, "T": 12}
_NUMBER = re.compile(r"(?P<digits>[0-9][0-9_]*\.?[0-9]*(e[0-9]{1,2})?)(?P<suffix>[KMBT]?)", re.IGNORECASE)
_MOST_TOKENS = 10**18


@dataclass(frozen=True)
class TokensChoice:
    """Tokens artifacts in the order in which they are first named, and in which proportion they are read."""

    names: tuple[str, ...]
    stages: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """(tokens that go before it, weight of each name) of each stage; none where there is one name alone."""

    @property
    def roles(self) -> dict[str, str]:
        """Role of an input of the stage → name: `tokens`, then `tokens-2` and so on."""
        return {"tokens" if n == 0 else f"tokens-{n + 1}": name for n, name in enumerate(self.names)}

    def what(self) -> dict[str, Any]:
        """What the result depends on besides the artifacts themselves."""
        return {"mixture": [[after, list(weights)] for after, weights in self.stages]} if self.stages else {}

    def mixture(self, seq_len: int) -> "Mixture":
        """The same in samples of `seq_len` tokens; only where there are stages.

        Raises ValueError if weights have too many digits.
        """
        from llm.data.mixture import Mixture  # numpy with it, which --help does without

        samples = [-(-after // seq_len) for after, _ in self.stages]
        for before, after in pairwise(range(len(samples))):
            if samples[before] == samples[after]:
                raise ValueError(
                    f"the stages after {self.stages[before][0]} and {self.stages[after][0]} tokens begin "
                    f"with the same sequence of {seq_len}; leave more between them"
                )
        return Mixture([(first, weights) for first, (_, weights) in zip(samples, self.stages, strict=True)])


def parse_tokens(text: str) -> TokensChoice:
    """Raises ValueError, naming the part that is wrong and how to write it."""
    parts = [part.strip() for part in text.split(";")]
    if len(parts) == 1 and "=" not in text:
        return TokensChoice((text,))
    begins, shares = [0], [_weights(parts[0])]
    for part in parts[1:]:
        begin, colon, weights = part.partition(":")
        if not colon:
            raise ValueError(f"tokens: {part!r} does not say when it begins; write it as 2e9: web=7,code=3")
        begins.append(_whole_number(begin.strip()))
        shares.append(_weights(weights))
        if begins[-1] <= begins[-2]:
            raise ValueError(f"tokens: {part!r} begins no later than what stands before it")
    names = tuple(dict.fromkeys(name for share in shares for name in share))
    if len(names) == 1:
        return TokensChoice(names)
    return TokensChoice(names, tuple(zip(begins, (_integers(share, names) for share in shares), strict=True)))


def _weights(text: str) -> dict[str, Decimal]:
    weights: dict[str, Decimal] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            weight = Decimal(number)
        except InvalidOperation:
            weight = Decimal(0)
        if not name or not weight.is_finite() or weight <= 0:
            raise ValueError(f"tokens: {part.strip()!r} is no NAME=WEIGHT with a weight above 0, like web=7")
        if name in weights:
            raise ValueError(f"tokens: {name} has two weights in {text.strip()!r}; give one")
        weights[name] = weight
    return weights


def _integers(share: dict[str, Decimal], names: tuple[str, ...]) -> tuple[int, ...]:
    """The smallest whole numbers in the same proportion, 0 for names that take no part."""
    ratios = [share.get(name, Decimal(0)).as_integer_ratio() for name in names]
    denominator = lcm(*(bottom for _, bottom in ratios))
    weights = [top * (denominator // bottom) for top, bottom in ratios]
    return tuple(weight // gcd(*weights) for weight in weights)


def _whole_number(text: str) -> int:
    """2000000000, 2_000_000_000, 2e9 or 2B."""
    match = _NUMBER.fullmatch(text)
    if match is not None:
        number = Decimal(match["digits"]).scaleb(_SUFFIXES.get(match["suffix"].upper(), 0))
        if number == int(number) and number <= _MOST_TOKENS:
            return int(number)
    raise ValueError(f"tokens: {text!r} is no number of tokens; write 2e9, 2B or 2000000000")
