"""Settings: one tree, of which every value is known to come from somewhere.

    flag --kubelet.plugin-dir > environment HAILO_AGENT_KUBELET__PLUGIN_DIR > YAML file > default

`tree` says what can be set and to what, `leaves` lists it, `load` reads what the operator wrote,
`show` prints what is in effect. Only `cli`, `sim` and `agent` see Settings; every other room
receives the two or three values that it needs.
"""

from hailo_agent.settings.leaves import Leaf, add_flags, flags_from, leaves
from hailo_agent.settings.load import Loaded, load
from hailo_agent.settings.show import reference_table, show, show_json
from hailo_agent.settings.tree import Family, FaultRule, Settings

__all__ = [
    "Family",
    "FaultRule",
    "Leaf",
    "Loaded",
    "Settings",
    "add_flags",
    "flags_from",
    "leaves",
    "load",
    "reference_table",
    "show",
    "show_json",
]
