# Every target makes this machine ready first (scripts/bootstrap, a tenth of a second once done).

PYTHON := .venv/bin/python
LAB := $(PYTHON) -m tests.lab
ARGS ?= tests/kernel

.PHONY: help ready demo test check unit native etcd kernel conformance systemd bench wheel lab lab-test lab-shell clean

help:           ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

ready:          ## install what is needed: Debian packages and .venv
	@scripts/bootstrap

demo: ready     ## the main job in one screenful: records in etcd, packets through IPVS and node ports
	@$(LAB) run -- python -m tests.lab.demo

test: ready     ## everything below: check, unit, native, etcd; kernel beside conformance; systemd
	@scripts/test

check: ready    ## ruff and mypy
	@scripts/test check

unit: ready     ## pure modules
	@scripts/test unit

native: ready   ## on this kernel, in network namespaces (root)
	@scripts/test native

etcd: ready     ## the client against real etcd servers and their faults
	@scripts/test etcd

kernel: ready   ## packets through IPVS: in the lab's machine, or natively where the kernel has ip_vs
	@scripts/test kernel

conformance: ready ## kube-proxy's behaviours by number; results for docs/conformance.md
	@scripts/test conformance

systemd: ready  ## the installed wheel under systemd in the lab, through a reboot
	@scripts/test systemd

bench: ready    ## figures, side by side with ipvsadm and keepalived: docs/benchmarks.md (an hour; see docs)
	@$(PYTHON) -m tests.bench $(BENCH)

wheel: ready    ## the wheel, in dist/
	@$(PYTHON) -m pip wheel --disable-pip-version-check -q --no-deps -w dist . && ls dist/edgeproxy-*.whl

lab: ready      ## build the lab's image, unless it is in the cache
	@$(LAB) build

lab-test: ready ## chosen tests in the lab: make lab-test ARGS="tests/kernel/test_lab.py -k curl"
	@$(LAB) run --vm -- pytest $(ARGS)

lab-shell: ready ## a shell in the booted lab
	@$(LAB) shell

clean:          ## remove caches and what was built (.venv and the lab's image, too)
	rm -rf .venv .cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
