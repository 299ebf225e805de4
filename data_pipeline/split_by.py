"""What the setting `data.split_by` may be."""

import re


def is_split_by(text: str) -> bool:
    """Whether `data.split_by` may be this."""
    if text.isdecimal():
        return int(text) > 0
    try:
        return re.compile(text).groups <= 1
    except re.error:
        return False
