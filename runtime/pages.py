"""The pool of KV-cache pages: which are free, which are taken. Knows neither tensors nor sequences."""

from __future__ import annotations


class PagePool:
    """Hands out page numbers 0..num_pages-1, last returned first."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._taken = bytearray(num_pages)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return sum(self._taken)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def take(self, count: int) -> list[int]:
        assert count <= len(self._free), f"{count} pages wanted, {len(self._free)} free"
        if count == 0:
            return []
        pages = self._free[-count:]
        del self._free[-count:]
        for page in pages:
            self._taken[page] = 1
        return pages

    def give_back(self, pages: list[int]) -> None:
        for page in pages:
            assert self._taken[page], f"page {page} is returned but was not taken"
            self._taken[page] = 0
        self._free.extend(pages)

    def check(self) -> None:
        """Free and taken pages are disjoint and together all of them."""
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        assert not any(self._taken[page] for page in self._free), "a free page counts as taken"
        assert self.num_free + self.num_used == self.num_pages, f"{self.num_free} free + {self.num_used} taken != {self.num_pages}"
