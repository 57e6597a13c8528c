"""A thread with an event loop of its own, where somebody else's function may take as long as it likes.

The engine's loop renews leases and watches databases: nothing that a function does may hold it up.  So each worker's
transform has a thread, which is a daemon and is never joined: a function that does not come back is left behind, and
the process can end all the same.

The loop is asyncio's own, not uvloop's: it carries one hand-over per batch, where speed is not to be had, and libraries
that people call from there are tested with it.

What this cannot help: C code that never lets go of the interpreter's lock stops all threads, the engine's too.  Leases
then run out, and another process takes over what this one held.
"""

from __future__ import annotations

import asyncio
import ctypes
import queue
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any, Final, Generic, TypeVar

Result = TypeVar("Result")

_POLL_S: Final = 0.005
LEAVE_S: Final = 1.0
"""What tasks that are left over may take to hear that they are cancelled."""


class Abandoned(BaseException):
    """Raised inside a function that has taken too long, so that it does not use a processor for ever."""


class ThreadEnded(Exception):
    """The loop has been ended from inside, as ``sys.exit()`` in a task of the function's own does."""


class Errand(Generic[Result]):
    """Work for the thread, and whoever waits for it in another loop.

    An errand that nobody waits for any more is cancelled, and what comes of it goes nowhere: it cannot be taken for
    the result of another.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> None:
        self._work = work
        self._asker = asyncio.get_running_loop()
        self._outcome: asyncio.Future[Result | BaseException] = self._asker.create_future()
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """In the thread: do it, and hand over whatever comes of it."""
        try:
            self._hand_over(await self._work())
        except BaseException as error:  # noqa: BLE001 - it is the asker's: nothing may end the thread's loop
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """From any thread: nothing will come of it."""
        # Those of asyncio and of the interpreter would seem to the asker to be about itself.
        self._hand_over(error if isinstance(error, Exception) else ThreadEnded())

    async def waited(self, within_s: float) -> bool:
        """True when something has come of it within that time."""
        done, _ = await asyncio.wait([self._outcome], timeout=within_s)
        return bool(done)

    @property
    def is_done(self) -> bool:
        """True when something has come of it."""
        return self._outcome.done()

    @property
    def result(self) -> Result:
        """What has come of it.  Raises what it raised, and ``ThreadEnded`` where the thread is gone."""
        outcome = self._outcome.result()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _hand_over(self, outcome: Result | BaseException) -> None:
        with suppress(RuntimeError):  # the asker's loop is closed: it has stopped asking
            self._asker.call_soon_threadsafe(self._arrived, outcome)

    def _arrived(self, outcome: Result | BaseException) -> None:
        if not self._outcome.done():
            self._outcome.set_result(outcome)


class LoopThread:
    """One daemon thread that runs an event loop until ``end``."""

    def __init__(self, name: str, on_stray_error: Callable[[BaseException], None]) -> None:
        """``on_stray_error`` hears of exceptions that no one awaited, from any thread."""
        self._on_stray_error = on_stray_error
        self._loop = asyncio.SelectorEventLoop()
        self._loop.set_exception_handler(self._stray)  # asyncio's own would log the exception's words
        self._loop.set_default_executor(DaemonExecutor(name))
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._errands: set[Errand[Any]] = set()  # of the asker's thread
        self._lock = threading.Lock()
        self._is_ended = False

    def start(self) -> None:
        """Begin to run."""
        self._thread.start()

    def submit(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Errand[Result]:
        """Have ``work`` run in the thread, and its result brought to the loop that is running here."""
        errand = Errand(work)
        with self._lock:
            if not self._is_ended:
                self._errands.add(errand)
                self._loop.call_soon_threadsafe(self._begin, errand)
                return errand
        errand.fail(ThreadEnded())
        return errand

    def drop(self, errand: Errand[Any]) -> None:
        """Nobody waits for it any more: it is cancelled, unless it is done."""
        with self._lock:
            self._errands.discard(errand)
            if not self._is_ended and not errand.is_done:
                self._loop.call_soon_threadsafe(self._cancel, errand)

    def frame(self) -> FrameType | None:
        """Where the thread is now: the innermost frame."""
        return sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 - documented, for debuggers as this is

    def end(self) -> None:
        """Let the loop end as soon as nothing is being run in it."""
        with self._lock:
            if not self._is_ended:
                self._is_ended = True
                self._loop.call_soon_threadsafe(self._loop.stop)

    def force(self) -> None:
        """It is inside a function that does not come back, and was told to end: raise ``Abandoned`` in it, so that it
        uses no processor for ever.  Of no use while it is inside C code, or where the function catches everything.
        """
        if self._thread.is_alive() and self._thread.ident is not None:
            ident = ctypes.c_ulong(self._thread.ident)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Abandoned))

    async def ended(self, within_s: float) -> bool:
        """True once the thread is gone; False when it is still there after that time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while self._thread.is_alive() and loop.time() < deadline:  # noqa: ASYNC110 - the end of a thread wakes nobody
            await asyncio.sleep(_POLL_S)
        return not self._thread.is_alive()

    def _begin(self, errand: Errand[Any]) -> None:
        errand.task = self._loop.create_task(errand.run())

    def _cancel(self, errand: Errand[Any]) -> None:
        if errand.task is not None:
            errand.task.cancel()

    def _stray(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException):
            self._told(error)

    def _told(self, error: BaseException) -> None:
        if not isinstance(error, Abandoned):
            self._on_stray_error(error)

    def _main(self) -> None:
        self._survived(self._loop.run_forever, self._told)  # a task of the function's own may exit
        for step in (self._tell, self._leave):  # twice, for Abandoned may come as late as here
            _ = self._survived(step) or self._survived(step)

    def _survived(self, step: Callable[[], None], told: Callable[[BaseException], None] | None = None) -> bool:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - a thread's own would be printed, words and all
            if told is not None:
                told(error)
            return False
        return True

    def _tell(self) -> None:
        """Tell whoever still waits that nothing will come."""
        with self._lock:
            self._is_ended = True
            left = list(self._errands)
        for errand in left:
            errand.fail(ThreadEnded())

    def _leave(self) -> None:
        """End what the function has left behind, then the loop."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=LEAVE_S))
        self._loop.run_until_complete(asyncio.wait_for(self._loop.shutdown_asyncgens(), LEAVE_S))
        self._loop.close()


class DaemonExecutor(ThreadPoolExecutor):
    """Threads for ``asyncio.to_thread`` that nobody waits for.

    The standard library's are joined when the interpreter ends: a call in one of them that hangs would keep the process
    for ever.
    """

    MOST_THREADS: Final = 32

    def __init__(self, name: str) -> None:
        super().__init__(max_workers=1)
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Have the function called by one of the threads."""
        future: Future[Any] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*arguments, **named)
            except BaseException as error:  # noqa: BLE001 - it is the asker's
                future.set_exception(error)
            else:
                future.set_result(result)

        self._jobs.put(job)
        if self._started < self.MOST_THREADS:
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name} {self._started}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - never waits
        """Let idle threads end."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with suppress(Exception):  # the loop that asked is closed
                job()
            del job
