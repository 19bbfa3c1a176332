"""A simulated camera on a tour through a toybox room, with true depth and true labels."""

import sys

from cliptrase_ros.ros.executable import run_module

if __name__ == '__main__':
    # Before the imports that take seconds, so that a signal ends them in order.
    sys.exit(run_module('cliptrase_ros.ros.toybox_camera'))

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from geometry_msgs.msg import Quaternion, TransformStamped, Vector3
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from cliptrase_ros.ros.conversions import MAKER
from cliptrase_ros.ros.executable import run_node
from cliptrase_ros.ros.parameters import declare_settings
from cliptrase_ros.ros.settings import ParameterError, check_camera_name
from cliptrase_ros.segmentation.settings import check_settings, setting, settings_of
from cliptrase_ros.toybox.renderer import intrinsics
from cliptrase_ros.toybox.scenes import DIFFICULTIES, SPLITS, Pose, sample_room
from cliptrase_ros.toybox.sequences import photograph

try:
    from tf2_msgs.msg import TFMessage
except ImportError:
    TFMessage = None

NODE_NAME = 'toybox_camera'


@dataclass(frozen=True)
class ToyboxCameraSettings:
    """The parameters of the simulated camera."""

    camera: str = setting('camera', 'Name: topics are NAME/image_raw and so on.')
    frame_id: str = setting('', 'Frame of the images; empty for NAME_optical_frame.')
    seed: int = setting(0, 'Which room.', limits=(0, 2**31 - 1))
    split: str = setting('held_out', 'Kind of room.', choices=tuple(SPLITS))
    difficulty: str = setting(
        'easy',
        'hard: more and smaller things, harsher light, worn textures, motion blur, noise.',
        choices=tuple(DIFFICULTIES),
    )
    width: int = setting(320, 'Image width, pixels.', limits=(16, 4096))
    height: int = setting(240, 'Image height, pixels.', limits=(16, 4096))
    rate: float = setting(10.0, 'Images a second.', limits=(0.1, 200.0))

    def __post_init__(self) -> None:
        check_settings(self)
        check_camera_name('camera', self.camera)


class ToyboxCamera(Node):
    """Publishes what a camera in a toybox room sees, as a driver would.

    Topics, all with the stamp of the image: NAME/image_raw (rgb8), NAME/camera_info, and while
    somebody listens NAME/image_raw/compressed (JPEG), NAME/depth/image_raw (32FC1, metres along
    the optical axis) and NAME/label_truth (mono8, index into toybox.scenes.CLASSES). Where tf2_msgs
    is installed tf says where the camera is: `room`, NAME_footprint on the floor below it, and the
    frame of the images.

    Raises:
        ValueError: A parameter has a value that cannot be used.
    """

    def __init__(self, **node_arguments):
        super().__init__(NODE_NAME, **node_arguments)
        declared = declare_settings(self, settings_of(ToyboxCameraSettings))
        values = ToyboxCameraSettings(**declared)
        self._room = sample_room(values.seed, values.split, values.difficulty)
        self._height, self._width = values.height, values.width
        self._period_s = 1.0 / values.rate
        self._frames_published = 0
        name = values.camera
        self._frame_id = values.frame_id or f'{name}_optical_frame'
        self._footprint = f'{name}_footprint'

        def publisher(message_type, topic: str):
            try:
                return self.create_publisher(
                    message_type,
                    f'{name}/{topic}',
                    5,  # reliable: best effort would shut out subscribers that ask for more
                    qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                )
            except RuntimeError as error:
                raise ParameterError(f'look at the qos_overrides of {topic}: {error}') from error

        self._image = publisher(Image, 'image_raw')
        self._compressed = publisher(CompressedImage, 'image_raw/compressed')
        self._camera_info = publisher(CameraInfo, 'camera_info')
        self._depth = publisher(Image, 'depth/image_raw')
        self._label_truth = publisher(Image, 'label_truth')
        self._tf = None if TFMessage is None else self.create_publisher(TFMessage, '/tf', 100)
        self.create_timer(self._period_s, self._publish)
        published = self._image, self._compressed, self._camera_info, self._depth, self._label_truth
        topics = ', '.join(publisher.topic_name for publisher in published)
        self.get_logger().info(f'{self._width}x{self._height} at {values.rate:g} Hz on {topics}')

    def _publish(self) -> None:
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._frame_id)
        # By the number of frames and not by the clock, so that a run is the same every time.
        tour_s = self._frames_published * self._period_s
        frame = photograph(self._room, tour_s, self._height, self._width)
        self._frames_published += 1
        if self._tf is not None:
            transforms = make_transforms(frame.pose, header, self._footprint)
            self._tf.publish(TFMessage(transforms=transforms))
        self._image.publish(MAKER.make_image(frame.image, 'rgb8', header))
        if self._compressed.get_subscription_count():
            self._compressed.publish(MAKER.make_compressed_picture(frame.image, header))
        self._camera_info.publish(self._make_camera_info(header))
        if self._depth.get_subscription_count():
            self._depth.publish(MAKER.make_image(frame.depth, '32FC1', header))
        if self._label_truth.get_subscription_count():
            self._label_truth.publish(MAKER.make_image(frame.label, 'mono8', header))

    def _make_camera_info(self, header: Header) -> CameraInfo:
        fx, fy, cx, cy = intrinsics(self._height, self._width)
        projection = np.array([[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0]], float)
        return CameraInfo(
            header=header,
            height=self._height,
            width=self._width,
            distortion_model='plumb_bob',
            d=[0.0] * 5,
            k=projection[:, :3].ravel(),
            r=np.eye(3).ravel(),
            p=projection.ravel(),
        )


def make_transforms(pose: Pose, header: Header, footprint: str) -> list[TransformStamped]:
    """From `room` to a frame on the floor below a camera, and from there to the header's frame."""
    x, y, z = pose.position.tolist()
    rotation = pose.rotation.double().numpy()
    yaw = math.atan2(rotation[1, 2], rotation[0, 2])
    upright = cv2.Rodrigues(np.array([0.0, 0.0, yaw]))[0]
    return [
        _make_transform('room', footprint, header, (x, y, 0.0), upright),
        _make_transform(footprint, header.frame_id, header, (0.0, 0.0, z), upright.T @ rotation),
    ]


def _make_transform(
    parent: str,
    child: str,
    header: Header,
    position: tuple[float, float, float],
    rotation: np.ndarray,
) -> TransformStamped:
    """Make the transform of a frame with a position and a rotation (3, 3) in its parent."""
    turn = cv2.Rodrigues(rotation)[0].ravel()
    angle = float(np.linalg.norm(turn))
    x, y, z = (turn * math.sin(angle / 2) / max(angle, 1e-9)).tolist()
    message = TransformStamped(
        header=Header(stamp=header.stamp, frame_id=parent), child_frame_id=child
    )
    message.transform.translation = Vector3(**dict(zip('xyz', position, strict=True)))
    message.transform.rotation = Quaternion(x=x, y=y, z=z, w=math.cos(angle / 2))
    return message


def main(args: list[str] | None = None) -> int:
    """Run the camera until it is told to end; returns the exit status."""
    # Small pictures: threads would only take the processors from whoever uses the images.
    torch.set_num_threads(1)
    return run_node(ToyboxCamera, NODE_NAME, args)
