"""The kubelet, on the other side of its plugin sockets: what it may count and hand out."""
