"""Figures: edgeproxy beside its peers on the same records, see `docs/benchmarks.md`."""
