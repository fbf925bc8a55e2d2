"""The kernel, on the other side of sysfs, devnodes, inotify and netlink: what is really there."""
