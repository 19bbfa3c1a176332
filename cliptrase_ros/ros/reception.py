"""A thread that receives messages, for topics that have too many for rclpy's executor."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import EventHandler
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.subscription import Subscription

_FOR_EVER, _NOT_AT_ALL = -1, 0
# Raised for what is destroyed; where rclpy has it depends on its version.
_InvalidHandle = rclpy_implementation.InvalidHandle


class Reception(CallbackGroup):
    """Takes the messages of the raw subscriptions that have it as their callback group.

    rclpy's executor builds a new wait set for each of its turns, two for a message, of everything a
    node has: a hundred things where eight cameras have seven outputs each. This one is built when a
    subscription comes or goes, and has nothing else in it. Callbacks are called in its thread:
    those of subscriptions, with bytes, and those of their events. An executor that waited for the
    events alone would wake at messages as well, again and again until they are taken.
    """

    def __init__(self, node: Node):
        super().__init__()
        self._node = node
        self._context = node.context
        self._has_changed = True
        self._is_ending = False
        self._guard = GuardCondition(None, None, context=self._context)
        self._thread = threading.Thread(target=self._run, name='reception', daemon=True)

    def start(self) -> None:
        """Begin to receive."""
        self._context.on_shutdown(self.wake)
        self._thread.start()

    def can_execute(self, entity) -> bool:
        """Leave nothing to the executor."""
        return False

    def beginning_execution(self, entity) -> bool:
        """Leave nothing to the executor."""
        return False

    def ending_execution(self, entity) -> None:
        """Nothing is to be done."""

    def add_entity(self, entity) -> None:
        """Receive by a subscription from now on."""
        super().add_entity(entity)
        self.wake()

    def wake(self) -> None:
        """See which subscriptions there are: one has come or is destroyed."""
        self._has_changed = True
        # The context calls this at its end as well, after `stop`.
        with suppress(_InvalidHandle):
            self._guard.trigger()

    def stop(self) -> None:
        """End the thread, after the message whose callback is running."""
        self._is_ending = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join()
        with suppress(_InvalidHandle):
            self._guard.destroy()

    def _run(self) -> None:
        while not self._is_ending and self._context.ok():
            try:
                self._receive_until_changed()
            except Exception as error:
                if self._is_ending or not self._context.ok():
                    return
                # Nothing may end this thread: the node would look alive and receive nothing.
                self._node.get_logger().error(
                    f'reception thread: {type(error).__name__}: {error}', throttle_duration_sec=5.0
                )
                time.sleep(0.01)

    def _receive_until_changed(self) -> None:
        self._has_changed = False
        # What is in use is not destroyed.
        with ExitStack() as in_use:
            context, guard = self._context.handle, self._guard.handle
            in_use.enter_context(context)
            in_use.enter_context(guard)
            subscriptions = {}
            for subscription in self._subscriptions():
                with suppress(_InvalidHandle):
                    for used in (subscription.handle, *subscription.event_handlers):
                        in_use.enter_context(used)
                    subscriptions[subscription.handle.pointer] = subscription
            handles = [subscription.handle for subscription in subscriptions.values()]
            # As rclpy.wait_for_message waits.
            wait_set = rclpy_implementation.WaitSet(len(handles), 1, 0, 0, 0, 0, context)
            while not self._has_changed:
                wait_set.clear_entities()
                wait_set.add_guard_condition(guard)
                for handle in handles:
                    wait_set.add_subscription(handle)
                wait_set.wait(_FOR_EVER)
                ready = wait_set.get_ready_entities('subscription')
                for pointer in ready:
                    subscription = subscriptions[pointer]
                    taken = subscription.handle.take_message(subscription.msg_type, True)
                    if taken is not None:
                        subscription.callback(taken[0])
                if not ready:
                    # An event ends the wait as well, also one that is not waited for.
                    self._take_events(
                        [event for s in subscriptions.values() for event in s.event_handlers]
                    )

    def _take_events(self, events: list[EventHandler]) -> None:
        wait_set = rclpy_implementation.WaitSet(0, 0, 0, 0, 0, len(events), self._context.handle)
        wait_set.clear_entities()
        for event in events:
            event.add_to_wait_set(wait_set)
        wait_set.wait(_NOT_AT_ALL)
        for event in events:
            if event.is_ready(wait_set) and (data := event.take_data()):
                event.callback(data)

    def _subscriptions(self) -> Iterator[Subscription]:
        for reference in self.entities.copy():
            entity = reference()
            if entity is None:
                self.entities.discard(reference)
            elif isinstance(entity, Subscription):
                yield entity
