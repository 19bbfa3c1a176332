"""A managed node whose transitions may take long, and which can start by itself."""

import concurrent.futures
import threading
from collections.abc import Callable

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.task import Future
from rclpy.timer import Timer

from cliptrase_ros.ros.executable import StartFailure
from cliptrase_ros.segmentation.device_faults import give_memory_back, release_frames
from cliptrase_ros.segmentation.model.weights import ModelError

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class ManagedNode(LifecycleNodeMixin, Node):
    """A lifecycle node that answers services during its transitions and tells why one failed.

    A transition runs in a thread of its own: loading a model takes seconds, and the executor's
    thread has to answer others meanwhile.

    Attributes:
        failure: Why the node could not be configured or activated the last time, or None.
        is_ending: To be set before the node is destroyed; errors are no news from then on.
        steady_clock: For timers that a paused or looping simulation must not stop.
    """

    def __init__(self, name: str, **node_arguments):
        self.failure: Exception | None = None
        self.is_ending = False
        self._failed_transition = ''
        self._is_starting = False
        Node.__init__(self, name, **node_arguments)
        self.steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        # Reentrant: others ask for the state while it changes.
        self._lifecycle_group = ReentrantCallbackGroup()
        LifecycleNodeMixin.__init__(self, callback_group=self._lifecycle_group)
        service = self._service_change_state
        change_state = service.callback

        async def change_state_in_thread(request, response):
            return await self._run_in_thread(change_state, request, response)

        service.callback = change_state_in_thread

    @property
    def state(self) -> str:
        """Label of the lifecycle state: unconfigured, inactive, active, finalized or between."""
        return self._state_machine.current_state[1]

    @property
    def failure_message(self) -> str:
        """What could not be done the last time, and why; '' if it could."""
        # Read once: a transition in its thread may set it anew.
        failure = self.failure
        return '' if failure is None else f'cannot be {self._failed_transition}: {explain(failure)}'

    def start_when_spun(self) -> None:
        """Configure and activate the node as soon as it spins, or let that raise StartFailure."""
        self._is_starting = True
        self._start_timer: Timer = self.create_timer(
            0.0, self._start, clock=self.steady_clock, callback_group=self._lifecycle_group
        )

    def destroy_node(self) -> None:
        """End the node."""
        super().destroy_node()
        # rclpy leaves the lifecycle's services to the garbage collector: until it comes, others
        # see a node that answers nothing.
        self._state_machine.destroy_when_not_in_use()

    def attempt(self, transition: str, function: Callable[[], None]) -> TransitionCallbackReturn:
        """Do what a transition does, and keep and log why if it fails; returns the outcome.

        Args:
            transition: What the node becomes by it: configured, activated.
        """
        try:
            function()
        except Exception as error:
            self._failed_transition, self.failure = transition, error
            # A node that starts by itself ends now, and its last line says why.
            if not self.is_ending and not self._is_starting:
                self.get_logger().error(self.failure_message)
            # The next try must not find the model of this one in memory.
            release_frames(error)
            give_memory_back()
            return FAILURE
        self.failure = None
        return SUCCESS

    async def _start(self) -> None:
        self.destroy_timer(self._start_timer)
        for transition in (self.trigger_configure, self.trigger_activate):
            if await self._run_in_thread(transition) != SUCCESS:
                reason = self.failure
                raise StartFailure(
                    'its state was changed meanwhile' if reason is None else explain(reason)
                ) from reason
        self._is_starting = False

    async def result_of(self, answer: concurrent.futures.Future):
        """Await what another thread sets; the executor goes on until then."""
        executor = self.executor
        is_set = Future(executor=executor)

        def resume(_answer) -> None:
            is_set.set_result(None)
            # It resumes tasks that await something only when it wakes.
            executor.wake()

        answer.add_done_callback(resume)
        await is_set
        return answer.result()

    async def _run_in_thread(self, function: Callable, *arguments):
        """Call a function in a thread of its own; the executor goes on until it returns."""
        answer: concurrent.futures.Future = concurrent.futures.Future()

        def run() -> None:
            try:
                answer.set_result(function(*arguments))
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=run, name='transition', daemon=True).start()
        return await self.result_of(answer)


def explain(error: Exception) -> str:
    """Say what an exception says, with its type where it was not written for people."""
    if isinstance(error, ValueError | ModelError):
        return str(error)
    return f'{type(error).__name__}: {error}'
