"""A ROS domain for processes that want to be among themselves."""

import os


def own_domain() -> str:
    """Give this process and those it starts a ROS domain, unless ROS_DOMAIN_ID is set; returns it.

    To be called before rclpy is initialised. It is 1 to 100, whose ports no system hands out to
    others, and depends on the process id, so that two seldom meet.
    """
    return os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
