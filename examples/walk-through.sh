#!/bin/sh
# The walk-through: node port 36200 -> service port 8000 -> backend port 80.
#
#     examples/walk-through.sh HOST
#
# HOST is the address of this host, which runs edgeproxy. etcdctl needs to know where etcd is
# (ETCDCTL_ENDPOINTS; default http://127.0.0.1:2379); the backends listen on 10.1.1.2:80 and 10.1.2.2:80.
set -eu
host=${1:?usage: examples/walk-through.sh HOST}
export ETCDCTL_API=3
set -v
etcdctl put /services/web '{"clusterIP":"10.96.0.10","ports":[{"port":8000,"targetPort":80,"nodePort":36200}]}'
etcdctl put /services/web/endpoints/a '{"address":"10.1.1.2"}'
etcdctl put /services/web/endpoints/b 10.1.2.2:80
curl -sS http://10.96.0.10:8000/
curl -sS "http://$host:36200/"
