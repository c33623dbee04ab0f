"""The behaviours of kube-proxy, by number, shown with packets: see `catalogue.py` and docs/conformance.md.

    make lab-test ARGS=tests/conformance     # leaves results in .cache/results
    python -m tests.conformance              # renders docs/conformance.md from them

`test_pure_*.py` need neither root nor ip_vs; the others run in the lab.
"""
