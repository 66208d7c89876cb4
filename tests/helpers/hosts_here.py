"""Workers of a cluster that all live in this process: everything is real but the processes.

What they return is pickled and read back, and arrives in an order that a seed fixes. A worker dies when asked to, with
what it had.
"""

from __future__ import annotations

import pickle
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.cluster.host import Fault, Host, Opener
from harness.cluster.workers import Event, Failed, Finished, Joined, Lost, Unit


@dataclass
class HostsHere:
    """``count`` workers. deaths: after how many results in all a worker dies, by its name."""

    opener: Opener
    count: int
    seed: int = 0
    deaths: Mapping[str, int] = field(default_factory=dict)
    computed: list[tuple[str, Unit]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def start(self) -> None:
        self._draw = random.Random(self.seed)
        self._hosts = {f"w{number}": Host(self.opener, 1) for number in range(self.count)}
        self._queues: dict[str, deque[Unit]] = {name: deque() for name in self._hosts}
        self._events: deque[Event] = deque()
        for name, host in self._hosts.items():
            fingerprint = host.fingerprint()
            assert not isinstance(fingerprint, Fault), fingerprint
            self._events.append(Joined(name, fingerprint))
            host.warm()

    def hand(self, worker: str, unit: Unit) -> None:
        self._queues[worker].append(unit)

    def wait(self, seconds: float) -> Sequence[Event]:
        if self._events:
            return [self._events.popleft()]
        for name, when in self.deaths.items():
            if name in self._hosts and len(self.computed) >= when:
                del self._hosts[name], self._queues[name]
                self.lost.append(name)
                return [Lost(name, "killed")]
        ready = [name for name, queue in self._queues.items() if queue]
        if not ready:
            return []
        name = self._draw.choice(ready)
        unit = self._queues[name].popleft()
        result = pickle.loads(pickle.dumps(self._hosts[name].run(unit)))  # noqa: S301 - our own bytes
        self.computed.append((name, unit))
        if isinstance(result, Fault):
            return [Failed(name, unit, f"{result.error}: {result.reason}", result.log, result.error)]
        return [Finished(name, unit, result)]

    def dismiss(self, worker: str) -> None:
        del self._hosts[worker], self._queues[worker]

    def explain_absence(self) -> str:
        return "none is left"

    def finish(self) -> Sequence[Failed]:
        faults = {name: host.verify() for name, host in self._hosts.items()}
        return [Failed(n, Unit("", "verify", ()), fault.reason) for n, fault in faults.items() if fault is not None]

    def stop(self) -> None:
        self._hosts = {}
