"""One thread that owns the engine and steps it while there is work; others send it requests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from retinue.core.log import get_logger
from retinue.serve.beams import Beams, beam_events
from retinue.serve.engine import Engine
from retinue.serve.request import Event, Request

Sink = Callable[[Event], None]
"""What takes a request's events, in the engine's thread: it must return at once."""


class Background:
    """An engine in a thread of its own. `submit` and `cancel` may be called from anywhere.

    broken: the exception after which the engine could not be trusted any more, if there was one.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.broken: Exception | None = None
        self._sinks: dict[str, Sink] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._searching = False
        self._gone: set[str] = set()
        self._later: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._loop, name="retinue-engine", daemon=True)

    @property
    def sound(self) -> bool:
        """Whether requests can be answered."""
        return self.broken is None and self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Give up what is under way and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request; every event of it goes to `sink`, the last one has a `finish`."""
        self._send(lambda: self._add(request, sink))

    def submit_beams(self, requests: Sequence[Request], beams: Beams, sink: Sink) -> None:
        """Queue the choices of one prompt with beams; they are computed by `generate` at once."""
        self.search(lambda turn: self._beams(requests, beams, sink, turn))

    def order(self, work: Callable[[], None]) -> Future[None]:
        """Have something done between two steps; the future has what it raised."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._send(run)
        return done

    def search(self, work: Callable[[Callable[[], bool]], None]) -> Future[None]:
        """As `order`, for long work: one at a time, which gives others their turn.

        work: is given what it calls between two of its steps; True says that it is to end now.
        """
        done: Future[None] = Future()

        def run() -> None:
            if self._searching:
                self._later.append(run)
                return
            self._searching = True
            try:
                work(self._others)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)
            finally:
                self._searching = False
                for later in self._later:
                    self._send(later)
                if not self._later:
                    self._gone.clear()
                self._later.clear()

        self._send(run)
        return done

    def _others(self) -> bool:
        """Everyone else's turn; whether the server closes."""
        self._turn()
        return self._closing

    def cancel(self, id: str) -> None:
        """Forget a request; a step under way may still say something of it."""
        self._gone.add(id)  # a search asks between two of its steps
        self._send(lambda: self._drop(id))

    def _send(self, order: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(order)
            self._wake.notify()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self.engine.busy or self._closing):
                    self._wake.wait()
                if self._closing:
                    return
            self._turn()

    def _turn(self) -> None:
        """What was ordered, and a step."""
        with self._wake:
            orders, self._inbox = self._inbox, deque()
        for order in orders:
            self._guarded(order)
        self._guarded(self._step)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Whatever fails, the thread goes on."""
        try:
            work()
        except Exception as error:
            for event in self._recover(error):
                self._tell(event)

    def _add(self, request: Request, sink: Sink) -> None:
        self._sinks[request.id] = sink
        try:
            if self.broken is not None:
                raise self.broken
            self.engine.add(request)
        except Exception as error:
            self._tell(Event(id=request.id, finish="error", error=error))

    def _beams(
        self, requests: Sequence[Request], beams: Beams, sink: Sink, turn: Callable[[], bool]
    ) -> None:
        self._sinks.update({request.id: sink for request in requests})

        def others() -> bool:
            return turn() or all(request.id in self._gone for request in requests)

        try:
            if self.broken is not None:
                raise self.broken
            for event in beam_events(self.engine, requests, beams, others=others):
                self._tell(event)
        except Exception as error:
            for request in requests:
                self._tell(Event(id=request.id, finish="error", error=error))

    def _drop(self, id: str) -> None:
        self._sinks.pop(id, None)
        self.engine.cancel(id)
        (self._gone.add if self._searching else self._gone.discard)(id)

    def _step(self) -> None:
        for event in self.engine.step() if self.engine.busy else ():
            self._tell(event)

    def _tell(self, event: Event) -> None:
        sink = self._sinks.get(event.id)
        if event.finish is not None:
            self._sinks.pop(event.id, None)
        if sink is not None:
            sink(event)

    def _recover(self, error: Exception) -> list[Event]:
        """Every request under way fails; the engine goes on if it is sound without them."""
        get_logger().exception("a step of the engine failed")
        ids = list(self.engine.requests)
        try:
            for id in ids:
                self.engine.cancel(id)
            self.engine.check_integrity()
        except Exception as worse:
            self.broken = worse
            self.engine.requests.clear()
        return [Event(id=id, finish="error", error=error) for id in ids]
