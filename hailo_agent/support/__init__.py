"""What helps somebody who asks: who holds what, why a pod has no device, a bundle for a report.

Made of what a running agent, the kubelet and the machine say at this moment. Like the doctor it
changes nothing, except for `uninstall`, which takes from the node what an agent left; it opens no
accelerator, and makes do with whoever answers.
"""
