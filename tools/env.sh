# The environment everything here runs in: the virtual environment, the ROS 2 wheels in it, and
# the colcon installation. For bash: `source tools/env.sh`; every make target does it by itself.
# On a ROS distribution use the usual install/setup.bash instead.

_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
_venv="$_root/.venv"
_prefix="$_root/install/cliptrase_ros"
_site=("$_prefix"/lib/python3.*/site-packages)
_bundled=("$_venv"/lib/python3.*/site-packages/ros_*.libs)

export VIRTUAL_ENV="$_venv"
export PATH="$_prefix/bin:$_venv/bin:$PATH"
# Set, not extended: modules of a ROS distribution sourced before do not fit these wheels.
export PYTHONPATH="${_site[0]}"
export AMENT_PREFIX_PATH="$_prefix:$_venv"
unset CMAKE_PREFIX_PATH COLCON_PREFIX_PATH
export LD_LIBRARY_PATH="$_prefix/lib:$_venv/lib$(printf ':%s' "${_bundled[@]}")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# The wheels find their libraries by starting Python a second time; the line above spares it that.
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1

export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO="$(<"$_venv/ros_distro")"
export RMW_IMPLEMENTATION=rmw_fastrtps_cpp
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST
export ROS_LOG_DIR="$_root/build/ros_log"
# Images do not fit the default shared-memory segment.
export FASTDDS_DEFAULT_PROFILES_FILE="$_root/config/fastdds_large_data.xml"
# Fast DDS 2, of Jazzy, calls it so; Fast DDS 3 warns of that name.
[ "$ROS_DISTRO" != jazzy ] || export FASTRTPS_DEFAULT_PROFILES_FILE="$FASTDDS_DEFAULT_PROFILES_FILE"

unset _root _venv _prefix _site _bundled
