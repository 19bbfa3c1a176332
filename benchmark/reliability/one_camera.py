"""One camera that publishes rgb8 images, best effort, and prints how many when its input closes."""

import argparse
import sys
import threading

import numpy as np
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from cliptrase_ros.ros.executable import initialized


def main() -> None:
    """Publish until standard input is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--width', type=int, default=640)
    parser.add_argument('--height', type=int, default=480)
    parser.add_argument('--rate', type=float, default=30.0)
    arguments = parser.parse_args()
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    with initialized([]):
        node = rclpy.create_node('one_camera')
        publisher = node.create_publisher(Image, '/camera/image_raw', qos_profile_sensor_data)
        image = Image(encoding='rgb8', width=arguments.width, height=arguments.height)
        image.step = 3 * arguments.width
        noise = np.random.default_rng(0).integers(0, 256, image.step * image.height, np.uint8)
        image.data = noise.tobytes()
        image.header.frame_id = 'camera_optical_frame'
        sent = 0

        def publish() -> None:
            nonlocal sent
            image.header.stamp = node.get_clock().now().to_msg()
            publisher.publish(image)
            sent += 1

        # What is published before the node has subscribed does not count.
        while not publisher.get_subscription_count() and not stop.is_set():
            rclpy.spin_once(node, timeout_sec=0.05)
        node.create_timer(1.0 / arguments.rate, publish)
        while not stop.is_set():
            rclpy.spin_once(node, timeout_sec=0.1)
        print(sent, flush=True)


if __name__ == '__main__':
    main()
