#!/bin/sh
# The host of the primary, PRIMARY_HOST. Sourced.
#
# A name that ends with a dot is looked up as it is. Any other one goes through the search list of the Pod when it has no
# record, as the primary's has none while its Pod is away, and may be found in another namespace. The domain of the
# Kubernetes cluster is what the kubelet writes behind this namespace in that list.
if [ -z "${PRIMARY_HOST:-}" ]; then
  namespace=${PRIMARY_NAME#*.*.}
  domain=$(sed -n 's/^search[[:blank:]]*//p' /etc/resolv.conf | tail -n 1 | tr -s '[:blank:]' '\n' |
    sed -n "s/^${namespace%.svc}\.svc\.//p" | head -n 1)
  if [ -z "$domain" ]; then
    echo "the search list in /etc/resolv.conf does not have $namespace: the Pod needs dnsPolicy ClusterFirst, and the kubelet clusterDomain" >&2
    exit 1
  fi
  PRIMARY_HOST=$PRIMARY_NAME.${domain%.}.
fi
