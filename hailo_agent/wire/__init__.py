"""The gRPC APIs we speak: protos/ compiled, one API at a time, each under the name we call it by.

    from hailo_agent.wire import agentapi, deviceplugin, podresources

Messages are values to build and read; `...Base` classes are to be served, `...Stub` classes to be
called. Below here nothing is written by hand: `make proto` does it.

`monitor` is no API but a file: what HailoRT tells of its own work.
"""

from hailo_agent.wire.generated.agentapi.hailo.agent import v1 as agentapi
from hailo_agent.wire.generated.deviceplugin import v1beta1 as deviceplugin
from hailo_agent.wire.generated.monitor.hailo.monitor import v1 as monitor
from hailo_agent.wire.generated.podresources import v1 as podresources

__all__ = ["agentapi", "deviceplugin", "monitor", "podresources"]
