"""Messages and events of a node that a thread beside rclpy's executor takes."""

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

#: Events of subscriptions are looked for so often, and whenever a wait ends without a message, as
#: it does with Fast DDS when there is one, seconds.
_EVENTS_PERIOD_S = 1.0

# Raised for what is destroyed; where rclpy has it depends on its version.
_InvalidHandle = rclpy_implementation.InvalidHandle


class OwnThread(CallbackGroup):
    """A callback group of raw subscriptions, or of publishers' events, with a thread for itself.

    rclpy's executor builds a new wait set of everything a node has for each of its turns, two for a
    message: a millisecond and more where eight cameras have seven outputs each, and each of these
    three kinds of events. With Fast DDS it also wakes for a subscription's events at each of its
    messages, again and again until that is taken. Here a wait set is built when something comes or
    goes, and only of what is in the group.

    Args:
        name: Of the thread.
    """

    def __init__(self, node: Node, name: str):
        super().__init__()
        self._node = node
        self._context = node.context
        self._has_changed = True
        self._is_ending = False
        self._guard = GuardCondition(None, None, context=self._context)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to call the callbacks, those of subscriptions with bytes and a MessageInfo."""
        # A context that shuts down ends the thread.
        self._context.on_shutdown(self.wake)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the callback that is running."""
        self._is_ending = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join()
        with suppress(_InvalidHandle):
            self._guard.destroy()

    def wake(self) -> None:
        """See what is in the group: something has come, or was destroyed."""
        self._has_changed = True
        # The context calls this at its end as well, after `stop`.
        with suppress(_InvalidHandle):
            self._guard.trigger()

    def add_entity(self, entity) -> None:
        """Take the messages of a subscription or events from now on."""
        super().add_entity(entity)
        self.wake()

    def can_execute(self, entity) -> bool:
        """Leave nothing to the executor."""
        return False

    def beginning_execution(self, entity) -> bool:
        """Leave nothing to the executor."""
        return False

    def ending_execution(self, entity) -> None:
        """Nothing is ever begun by the executor."""

    def _run(self) -> None:
        while True:
            # First, so that nothing is overlooked that changes while it is being looked at.
            self._has_changed = False
            if self._has_ended:
                return
            try:
                self._take_until_changed()
            except _InvalidHandle:
                # Something was destroyed meanwhile; the next wait is without it.
                continue
            except Exception as error:
                if self._has_ended:
                    return
                # Nothing may end this thread: the node would look alive and receive nothing.
                self._node.get_logger().error(
                    f'{self._thread.name} thread: {type(error).__name__}: {error}',
                    throttle_duration_sec=5.0,
                )
                time.sleep(0.01)

    @property
    def _has_ended(self) -> bool:
        # Not `Context.ok`, which takes a lock that a shutdown holds while it waits for this thread.
        return self._is_ending or not self._context.handle.ok()

    def _take_until_changed(self) -> None:
        # What is in use is not destroyed.
        with ExitStack() as in_use:
            context, guard = self._context.handle, self._guard.handle
            in_use.enter_context(context)
            in_use.enter_context(guard)
            subscriptions, events = {}, []
            for entity in self._living_entities():
                is_subscription = isinstance(entity, Subscription)
                try:
                    in_use.enter_context(entity.handle if is_subscription else entity)
                except _InvalidHandle:
                    continue
                except AttributeError:
                    # An event is in its group before rclpy has made all of it: look again.
                    time.sleep(0.001)
                    self._has_changed = True
                    continue
                if is_subscription:
                    subscriptions[entity.handle.pointer] = entity
                else:
                    events.append(entity)
            handles = [subscription.handle for subscription in subscriptions.values()]
            # Those of subscriptions are not waited for: it would take time with every message.
            of_subscriptions = {e for s in subscriptions.values() for e in s.event_handlers}
            awaited = [event for event in events if event not in of_subscriptions]
            events_due = 0.0
            # As rclpy.wait_for_message waits.
            wait_set = rclpy_implementation.WaitSet(len(handles), 1, 0, 0, 0, len(awaited), context)
            while not self._has_changed:
                wait_set.clear_entities()
                wait_set.add_guard_condition(guard)
                for handle in handles:
                    wait_set.add_subscription(handle)
                for event in awaited:
                    event.add_to_wait_set(wait_set)
                wait_set.wait(round(1e9 * _EVENTS_PERIOD_S))
                ready = wait_set.get_ready_entities('subscription')
                for pointer in ready:
                    subscription = subscriptions[pointer]
                    taken = subscription.handle.take_message(subscription.msg_type, True)
                    if taken is not None:
                        subscription.callback(*taken)
                now = time.monotonic()
                if events and not self._has_changed and (not ready or now > events_due):
                    self._take_events(events)
                    events_due = now + _EVENTS_PERIOD_S

    def _take_events(self, events: list[EventHandler]) -> None:
        wait_set = rclpy_implementation.WaitSet(0, 0, 0, 0, 0, len(events), self._context.handle)
        wait_set.clear_entities()
        for event in events:
            event.add_to_wait_set(wait_set)
        wait_set.wait(0)
        for event in events:
            if event.is_ready(wait_set) and (data := event.take_data()):
                event.callback(data)

    def _living_entities(self) -> Iterator[Subscription | EventHandler]:
        # Copied: others are added meanwhile.
        for reference in self.entities.copy():
            entity = reference()
            if entity is None:
                self.entities.discard(reference)
            else:
                yield entity
