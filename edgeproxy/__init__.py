"""edgeproxy: kube-proxy's Service semantics for hosts without Kubernetes."""

__version__ = "0.1.0"
