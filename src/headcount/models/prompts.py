"""Writes the sentence that describes each bin to CLIP.

Implements section III-B of arXiv:2403.09281. It does not encode the sentences (see ``clip``).
"""

import math
from collections.abc import Sequence

from headcount.config import CountStyle, LastPrompt, PromptsConfig


def write_prompts(edges: Sequence[tuple[float, float]], config: PromptsConfig) -> list[str]:
    """Write one sentence per bin, in the order of the bins.

    Args:
        edges: first and last integer of each bin; the last bin ends at inf.
        config: the phrases, and how counts are written.

    Source: arXiv:2403.09281, section III-B; the default phrases for 0, 1 and the open bin are those of the released
    code.
    """
    return [_sentence(int(low), high, config) for low, high in edges]


def _sentence(low: int, high: float, config: PromptsConfig) -> str:
    words = {"low": _written(low, config.style), "noun": config.plural}
    if high == math.inf:
        return (config.m_or_more if config.last is LastPrompt.m_or_more else config.more_than).format(**words)
    if high > low:
        return config.between.format(high=_written(int(high), config.style), **words)
    if low > 1:
        return config.many.format(count=words["low"], noun=config.plural)
    none = low == 0 and config.style is CountStyle.word
    return config.one.format(count="no" if none else words["low"], noun=config.singular)


def _written(count: int, style: CountStyle) -> str:
    # As in the released code: counts up to 100 and multiples of 100 up to 1000 are spelled out, the others are digits.
    if style is CountStyle.number or count > 1000 or (count > 100 and count % 100):
        return str(count)
    from num2words import num2words  # late: few models have texts

    return str(num2words(count))
