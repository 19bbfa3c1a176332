# The node on a robot with an NVIDIA GPU: docs/containers.md. Linted, and not built yet.
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}

# Where PyTorch comes from; a Jetson needs another one.
ARG TORCH_INDEX=https://pypi.org/simple
SHELL ["/bin/bash", "-eo", "pipefail", "-c"]
WORKDIR /workspace

# By package.xml alone, so that changes of the code leave the large layers as they are.
COPY package.xml src/cliptrase_ros/
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv \
    && rosdep update \
    && rosdep install --from-paths src --ignore-src -y -t buildtool -t build -t exec \
        --skip-keys 'rviz2 rviz_default_plugins' \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv --system-site-packages venv && touch venv/COLCON_IGNORE \
    && venv/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" 'torch>=2.6' torchvision \
    && venv/bin/pip install --no-cache-dir 'open_clip_torch>=3.0,<4' 'rosbags>=0.11,<0.12' 'mcap>=1.4,<2' 'av>=14.1' 'rich>=13' 'fsspec>=2024.10' 'tenacity>=8.2'

COPY . src/cliptrase_ros
RUN source "/opt/ros/${ROS_DISTRO}/setup.bash" && source venv/bin/activate \
    && colcon build --cmake-args -DBUILD_TESTING=OFF

# What `--runtime nvidia` of a Jetson asks for; `--gpus all` needs neither.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["/bin/bash", "-c", "source /workspace/install/setup.bash && exec \"$@\"", "--"]
CMD ["ros2", "launch", "cliptrase_ros", "segment.launch.py"]
