"""hailo-agent: a Kubernetes node agent for Hailo accelerators.

It looks at the machine, decides what is true, writes it down for the container runtime, and tells
everyone who listens, in that order, over and over, whatever woke it up.
"""

# The one place where the version is written; the build and `hailo-agent --version` read it here.
__version__ = "0.1.0"
