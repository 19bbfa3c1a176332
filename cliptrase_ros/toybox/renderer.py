"""A ray caster for the toy world: batched torch, the same code on CPU and CUDA.

All rays of all views are cast at once (in chunks that fit the cache), with analytic
intersections, one texture formula, and soft shadows as of balls in place of the objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cliptrase_ros.toybox import materials as m
from cliptrase_ros.toybox.scenes import (
    BOX_SLOTS,
    FIXTURE_SLOT,
    FIXTURES,
    OBJECT_SLOTS,
    ROUND_SLOTS,
    SLOTS,
    Pose,
    Room,
    RoomBatch,
)

# Focal length over image width: a horizontal field of view of 64 degrees.
FOCAL_RATIO = 0.8

# Rays in flight. On the CPU temporaries have to stay in the cache, on CUDA the card has to fill.
_CHUNK_RAYS = {'cpu': 1 << 14, 'cuda': 1 << 22}
_FAR = 1e6
_NEAR = 0.05


@dataclass(frozen=True)
class Views:
    """B rendered views.

    Attributes:
        image: uint8 (B, H, W, 3) RGB.
        depth: float32 (B, H, W), metres along the optical axis.
        label: uint8 (B, H, W), index into `scenes.CLASSES`.
    """

    image: Tensor
    depth: Tensor
    label: Tensor


def intrinsics(height: int, width: int) -> tuple[float, float, float, float]:
    """Intrinsics (fx, fy, cx, cy), pixels; the centre of the first pixel is (0, 0)."""
    focal = FOCAL_RATIO * width
    return focal, focal, (width - 1) / 2, (height - 1) / 2


def render(
    rooms: RoomBatch | Sequence[Room],
    poses: Pose | Sequence[Pose],
    height: int,
    width: int,
    device: str | torch.device = 'cpu',
    *,
    focal: Tensor | None = None,
) -> Views:
    """Render B views, each of its own room.

    Args:
        rooms: B rooms.
        poses: B poses, or one `Pose` of B cameras.
        height: Of a view, pixels, as is `width`.
        device: Where it is rendered, and where the views are.
        focal: (B,), focal lengths in pixels, in place of that of `intrinsics`.

    Raises:
        ValueError: The numbers of rooms and poses differ.
    """
    device = torch.device(device)
    if not isinstance(rooms, RoomBatch):
        rooms = RoomBatch.concatenate([room.packed for room in rooms])
    if not isinstance(poses, Pose):
        poses = Pose(
            torch.stack([pose.position for pose in poses]),
            torch.stack([pose.rotation for pose in poses]),
        )
    count = len(rooms)
    if len(poses.position) != count:
        raise ValueError(f'{count} rooms but {len(poses.position)} poses')
    rooms = rooms.to(device)
    poses = Pose(poses.position.to(device), poses.rotation.to(device))
    _, _, cx, cy = intrinsics(height, width)
    if focal is None:
        focal = torch.full((count,), FOCAL_RATIO * width)
    focal = focal.to(device)

    image = torch.empty(count, height * width, 3, dtype=torch.uint8, device=device)
    depth = torch.empty(count, height * width, device=device)
    label = torch.empty(count, height * width, dtype=torch.uint8, device=device)
    chunk = _CHUNK_RAYS.get(device.type, _CHUNK_RAYS['cuda'])
    views = max(1, chunk // (height * width))
    rows = min(height, max(1, chunk // width))
    columns = torch.arange(width, device=device, dtype=torch.float32) - cx
    lines = torch.arange(height, device=device, dtype=torch.float32) - cy
    with torch.no_grad():
        for start in range(0, count, views):
            batch = slice(start, start + views)
            caster = _Caster(
                rooms[batch], poses.position[batch], poses.rotation[batch], focal[batch]
            )
            for top in range(0, height, rows):
                band = lines[top : top + rows]
                span = slice(top * width, (top + len(band)) * width)
                image[batch, span], depth[batch, span], label[batch, span] = _render_band(
                    caster, columns, band
                )
    shape = (count, height, width)
    return Views(image.view(*shape, 3), depth.view(shape), label.view(shape))


def _render_band(caster: _Caster, columns: Tensor, lines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image uint8 (B, P, 3), depth (B, P) and label (B, P) of some lines of the picture.

    Columns and lines are pixels from the principal point.
    """
    y = lines[:, None].expand(-1, len(columns)).reshape(-1)
    x = columns[None].expand(len(lines), -1).reshape(-1)
    color, depth, ids = caster.cast(x, y)
    # Gamma 2 is close to sRGB and much cheaper.
    pixels = (color.clamp(0, 1).sqrt() * 255 + 0.5).to(torch.uint8)
    return pixels.permute(1, 2, 0), depth, ids.to(torch.uint8)


class _Caster:
    """Rays from the cameras of a chunk of views. Tensors are (B, P) or (B, slots, P)."""

    def __init__(self, rooms: RoomBatch, position: Tensor, rotation: Tensor, focal: Tensor):
        self.rooms = rooms
        self.origin = position
        self.rotation = rotation
        self.focal = focal
        count = len(position)
        self.glossy = bool((rooms.appearance[..., m.GLOSS] > 0).any())
        self.table = rooms.appearance.reshape(count * SLOTS, m.FEATURES).T.contiguous()
        self.base = (torch.arange(count, device=position.device) * SLOTS)[:, None]
        centre = torch.cat([rooms.round[..., :3], rooms.box[..., :3]], 1)
        self.centre_xy, height = centre[..., :2], centre[..., 2]
        self.occluder = torch.stack([centre[..., 0], centre[..., 1], height * 0.45], -1)
        # Cones are thin at the top, so their shadow is that of a smaller ball.
        slim = torch.ones_like(height)
        slim[:, :ROUND_SLOTS] -= 0.25 * (rooms.round[..., 4] < 0)
        slim[:, ROUND_SLOTS:] *= 0.85
        self.occluder_radius = rooms.radius * slim
        self.present = (rooms.radius > 0).any(0).nonzero()[:, 0]
        bound = (rooms.radius**2 + height**2 / 4).sqrt()
        away = torch.cat([self.centre_xy, height[..., None] / 2], -1) - position[:, None]
        self.bound = torch.where(rooms.radius > 0, bound, -_FAR)
        # Centres in the optical frame.
        self.bound_centre = torch.einsum('bsk,bkc->bsc', away, rotation)

    def _visible(self, x: tuple[float, float], y: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Round and box slots that some ray may hit, by their bounding balls; never empty."""
        cx, cy, cz = self.bound_centre.unbind(-1)
        inside = cz > -self.bound
        for (low, high), c in ((x, cx), (y, cy)):
            for limit, sign in ((low, 1), (high, -1)):
                slope = limit / self.focal[:, None]
                inside &= sign * (c - slope * cz) * torch.rsqrt(1 + slope**2) > -self.bound
        inside = inside.any(0)
        rounds, boxes = inside[:ROUND_SLOTS], inside[ROUND_SLOTS:]
        rounds[0] |= ~rounds.any()
        boxes[0] |= ~boxes.any()
        return rounds.nonzero()[:, 0], boxes.nonzero()[:, 0]

    def cast(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Follow rays to what they hit first.

        Args:
            x: (P,), pixels right of the principal point.
            y: (P,), pixels below it.

        Returns:
            Colour (3, B, P) in linear light, depth (B, P), and class id (B, P).
        """
        inverse = (1 / self.focal)[:, None]
        dx, dy = x[None] * inverse, y[None] * inverse
        rotation = self.rotation[..., None]
        # The camera-frame z of a direction is 1, so the ray parameter is the depth.
        direction = [
            rotation[:, axis, 0] * dx + rotation[:, axis, 1] * dy + rotation[:, axis, 2]
            for axis in range(3)
        ]
        t_room, surface = self._hit_room(direction)
        rounds, boxes = self._visible((x[0], x[-1]), (y[0], y[-1]))
        t_round, on_cap = self._hit_round(direction, rounds)
        t_box, box_axis = self._hit_box(direction, boxes)
        t_solids = torch.cat([t_round, t_box], 1)
        t_object = t_solids.amin(1)
        # Far cheaper on the CPU than min(dim) or argmin.
        order = torch.arange(t_solids.shape[1], device=x.device)[None, :, None]
        nearest = ((t_solids == t_object[:, None]) * order).amax(1)
        slot = torch.cat([rounds, boxes + ROUND_SLOTS])[nearest]
        on_cap = on_cap.gather(1, nearest.clamp_max(len(rounds) - 1)[:, None])[:, 0]
        box_axis = box_axis.gather(1, (nearest - len(rounds)).clamp_min(0)[:, None])[:, 0]
        is_object = t_object < t_room
        depth = torch.where(is_object, t_object, t_room)
        point = [self.origin[:, axis, None] + depth * direction[axis] for axis in range(3)]

        u, v, normal = self._surface_coordinates(point, surface)
        surface_slot = self._fixtures(point, surface, u, v)
        u_object, v_object, n_object, top = self._object_coordinates(point, slot, on_cap, box_axis)
        u = torch.where(is_object, u_object, u)
        v = torch.where(is_object, v_object, v)
        normal = [torch.where(is_object, a, b) for a, b in zip(n_object, normal, strict=True)]
        hit = torch.where(is_object, slot, surface_slot)

        index = (hit + self.base).reshape(-1)
        row = [feature.index_select(0, index).view(hit.shape) for feature in self.table]
        color = _paint(row, u, v, depth * inverse, is_object & top)
        color = color * self._light(point, normal, slot, is_object)
        if self.glossy:
            color = color + row[m.GLOSS] * self._highlight(point, normal, direction)
        return color, depth, row[m.CLASS_ID]

    def _hit_room(self, direction: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Where rays leave the room: depth and surface 0..5 (see `scenes.SURFACES`)."""
        best = surface = None
        for axis in range(3):
            forward = direction[axis] > 0
            size = self.rooms.size[:, axis, None]
            origin = self.origin[:, axis, None]
            t = torch.where(forward, size - origin, -origin) / direction[axis]
            t = torch.where(direction[axis].abs() < 1e-9, torch.full_like(t, _FAR), t)
            if best is None:
                best, surface = t, forward.long()
            else:
                closer = t < best
                best = torch.where(closer, t, best)
                surface = torch.where(closer, forward.long() + 2 * axis, surface)
        return best, surface

    def _hit_round(self, direction: list[Tensor], kept: Tensor) -> tuple[Tensor, Tensor]:
        """Depth (B, kept, P) of solids of revolution, and whether the flat top is hit."""
        r = self.rooms.round[:, kept]
        height, a, b, c = (r[..., i, None] for i in range(2, 6))
        ox, oy = (self.origin[:, None, i, None] - r[..., i, None] for i in range(2))
        oz = self.origin[:, None, 2, None]
        dx, dy, dz = (component[:, None] for component in direction)
        quadratic = dx * dx + dy * dy - c * (dz * dz)
        linear = ox * dx + oy * dy - (b / 2 + c * oz) * dz
        constant = ox * ox + oy * oy - a - oz * (b + c * oz)
        root = linear * linear - quadratic * constant
        # A vanishing leading coefficient needs a ray along the side of a cone: one in millions.
        inverse = 1 / quadratic
        spread = root.clamp_min(0).sqrt()
        # For a cone the leading coefficient can be negative and the roots come in either order.
        t_1 = (-linear - spread) * inverse
        t_2 = (-linear + spread) * inverse
        first, second = torch.minimum(t_1, t_2), torch.maximum(t_1, t_2)
        z_1, z_2 = oz + first * dz, oz + second * dz
        good_1 = (z_1 > 0) & (z_1 < height) & (first > _NEAR)
        good_2 = (z_2 > 0) & (z_2 < height) & (second > _NEAR)
        t = torch.where(good_1, first, torch.where(good_2, second, _FAR))
        present = self.rooms.radius[:, kept, None] > 0
        t = torch.where((root > 0) & present, t, _FAR)
        t_top = (height - oz) / dz
        x, y = ox + t_top * dx, oy + t_top * dy
        top_radius = a + height * (b + c * height)
        on_cap = (x * x + y * y < top_radius - 1e-5) & (t_top > _NEAR) & (t_top < t) & present
        return torch.where(on_cap, t_top, t), on_cap

    def _hit_box(self, direction: list[Tensor], kept: Tensor) -> tuple[Tensor, Tensor]:
        """Depth (B, kept, P) of boxes and the axis 0..2 of the face that is hit."""
        x, y, height, half_length, half_width, cosine, sine = (
            self.rooms.box[:, kept, i, None] for i in range(7)
        )
        ox, oy = self.origin[:, None, 0, None] - x, self.origin[:, None, 1, None] - y
        dx, dy, dz = (component[:, None] for component in direction)
        origin = (cosine * ox + sine * oy, cosine * oy - sine * ox)
        slabs = (
            (origin[0], cosine * dx + sine * dy, half_length),
            (origin[1], cosine * dy - sine * dx, half_width),
            (self.origin[:, None, 2, None] - height / 2, dz, height / 2),
        )
        enter = leave = axis = None
        for index, (o, d, half) in enumerate(slabs):
            inverse = 1 / d
            middle, reach = -o * inverse, half * inverse.abs()
            near, far = middle - reach, middle + reach
            if enter is None:
                enter, leave, axis = near, far, torch.zeros_like(near, dtype=torch.long)
            else:
                later = near > enter
                enter = torch.where(later, near, enter)
                axis = torch.where(later, index, axis)
                leave = torch.minimum(leave, far)
        present = self.rooms.radius[:, kept + ROUND_SLOTS, None] > 0
        return torch.where((enter < leave) & (enter > _NEAR) & present, enter, _FAR), axis

    def _surface_coordinates(self, point: list[Tensor], surface: Tensor):
        """Texture coordinates in metres and the inward normal on the room's own surfaces."""
        px, py, pz = point
        flat = surface >= 4
        side = surface < 2
        u = torch.where(side, py, px)
        v = torch.where(flat, py, pz)
        sign = 1.0 - 2.0 * (surface & 1)
        zero = torch.zeros_like(px)
        normal = [
            torch.where(side, sign, zero),
            torch.where(side | flat, zero, sign),
            torch.where(flat, sign, zero),
        ]
        return u, v, normal

    def _fixtures(self, point: list[Tensor], surface: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The slot of the surface that is hit; a door or window hides the wall behind it."""
        slot = surface + OBJECT_SLOTS
        for index in range(len(FIXTURES)):
            wall, left, right, low, high = (self.rooms.fixture[:, index, i, None] for i in range(5))
            inside = (surface == wall) & (u > left) & (u < right) & (v > low) & (v < high)
            slot = torch.where(inside, FIXTURE_SLOT + index, slot)
        return slot

    def _object_coordinates(
        self, point: list[Tensor], slot: Tensor, on_cap: Tensor, box_axis: Tensor
    ):
        """Texture coordinates 0..1, normal, and whether a flat top is hit, for object hits."""
        round_row = torch.gather(
            self.rooms.round, 1, slot.clamp_max(ROUND_SLOTS - 1)[..., None].expand(-1, -1, 6)
        )
        x, y, height, a, b, c = round_row.unbind(-1)
        is_box = slot >= ROUND_SLOTS
        box_slot = (slot - ROUND_SLOTS).clamp(0, BOX_SLOTS - 1)
        box_row = torch.gather(self.rooms.box, 1, box_slot[..., None].expand(-1, -1, 7))
        bx, by, box_height, half_length, half_width, cosine, sine = box_row.unbind(-1)
        px, py, pz = point

        lx, ly = px - x, py - y
        slope = -(b / 2 + c * pz)
        norm = torch.rsqrt(lx * lx + ly * ly + slope * slope + 1e-12)
        one, zero = torch.ones_like(px), torch.zeros_like(px)
        normal = [
            torch.where(on_cap, zero, lx * norm),
            torch.where(on_cap, zero, ly * norm),
            torch.where(on_cap, one, slope * norm),
        ]
        u = torch.atan2(ly, lx) * 0.15915494 + 0.5
        v = pz / height

        gx, gy = px - bx, py - by
        qx, qy = cosine * gx + sine * gy, cosine * gy - sine * gx
        on_x, on_top = box_axis == 0, box_axis == 2
        sign_x, sign_y = torch.sign(qx), torch.sign(qy)
        box_normal = [
            torch.where(on_x, cosine * sign_x, torch.where(on_top, zero, -sine * sign_y)),
            torch.where(on_x, sine * sign_x, torch.where(on_top, zero, cosine * sign_y)),
            torch.where(on_top, one, zero),
        ]
        along_x = qx / (2 * half_length) + 0.5
        along_y = qy / (2 * half_width) + 0.5
        u = torch.where(is_box, torch.where(on_x, along_y, along_x), u)
        v = torch.where(is_box, torch.where(on_top, along_y, pz / box_height), v)
        normal = [torch.where(is_box, p, q) for p, q in zip(box_normal, normal, strict=True)]
        return u, v, normal, on_cap & ~is_box

    def _light(
        self, point: list[Tensor], normal: list[Tensor], slot: Tensor, is_object: Tensor
    ) -> Tensor:
        """Light (3, B, P): sky and lamp, with soft shadows and contact darkening of objects."""
        ray = [self.rooms.light[:, axis, None] - point[axis] for axis in range(3)]
        squared = _dot(ray, ray)
        cosine = _dot(ray, normal) * torch.rsqrt(squared)
        occluder = self.occluder[:, self.present, :, None]
        away = [occluder[:, :, axis] - point[axis][:, None] for axis in range(3)]
        distance = _dot(away, away)
        along = _dot(away, [a[:, None] for a in ray]) / squared[:, None]
        miss = (distance - along.clamp(0, 1) ** 2 * squared[:, None]).clamp_min(0).sqrt()
        radius = self.occluder_radius[:, self.present, None]
        shade = ((miss / radius.clamp_min(1e-6) - 0.7) / 0.5).clamp(0, 1)
        facing = _dot(away, [a[:, None] for a in normal])
        # Ambient occlusion of a ball: solid angle times cosine.
        contact = facing.clamp_min(0) * radius**2 * torch.rsqrt(distance + 1e-6) ** 3
        own = self.present[None, :, None] == slot[:, None]
        skip = (own & is_object[:, None]) | (radius <= 0)
        shade = torch.where(skip | (along < 0), 1.0, shade).prod(1)
        contact = torch.where(skip, 0.0, contact).sum(1)

        ambient = self.rooms.ambient[:, None] + 0.12 * normal[2]
        ambient = ambient * (1 - 0.8 * contact).clamp_min(0.25)
        # Without a little light on faces turned away from the lamp they all look alike.
        lamp = 0.95 * (cosine * 0.85 + 0.15).clamp_min(0) * (0.3 + 0.7 * shade)
        lamp = lamp * (9.0 / (squared + 6.0))
        return (ambient + lamp)[None] * self.rooms.brightness.T[..., None]

    def _highlight(
        self, point: list[Tensor], normal: list[Tensor], direction: list[Tensor]
    ) -> Tensor:
        """Reflection of the lamp (B, P), 0..1: Blinn's half vector."""
        ray = [self.rooms.light[:, axis, None] - point[axis] for axis in range(3)]
        to_lamp = torch.rsqrt(_dot(ray, ray))
        to_eye = torch.rsqrt(_dot(direction, direction))
        half = [a * to_lamp - b * to_eye for a, b in zip(ray, direction, strict=True)]
        cosine = _dot(half, normal) * torch.rsqrt(_dot(half, half) + 1e-9)
        return cosine.clamp_min(0) ** 40


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _edge(distance: Tensor, softness: Tensor) -> Tensor:
    """1 where distance < 0, 0 beyond the softness; linear between."""
    return (0.5 - distance / softness).clamp(0, 1)


def _paint(row: list[Tensor], u: Tensor, v: Tensor, footprint: Tensor, plain: Tensor) -> Tensor:
    """The texture formula: colour (3, B, P) in linear light.

    Args:
        row: `materials.FEATURES` texture parameters, (B, P) each.
        u: (B, P), texture coordinate, as is `v`; see `materials.Texture`.
        footprint: (B, P), metres a pixel.
        plain: bool (B, P), flat tops, which show their first colour only.
    """
    tile_u, tile_v = row[m.TILE_U], row[m.TILE_V]
    cell_v = v / tile_v
    line = cell_v.floor()
    cell_u = u / tile_u + row[m.SHIFT] * line
    column = cell_u.floor()
    fu, fv = cell_u - column - 0.5, cell_v - line - 0.5
    # One pixel in cell units: edges are that soft, and finer patterns fade to their mean.
    soft_u, soft_v = footprint / tile_u + 1e-4, footprint / tile_v + 1e-4

    parity = (column + line) - 2 * ((column + line) * 0.5).floor()
    second = parity * row[m.CHECKER]
    dot = row[m.DOT]
    reach = torch.sqrt(fu * fu + fv * fv)
    second = torch.where(dot > 0, _edge(reach - dot, soft_u + soft_v), second)

    noise = torch.sin(column * 12.9898 + line * 78.233 + row[m.PHASE]) * 43.7585
    noise = noise - noise.floor() - 0.5
    grain = torch.sin(v * 61.0 + noise * 19.0 + 2.0 * torch.sin(u * 5.3 + noise * 31.0))
    grain = grain * torch.sin(v * 143.0 + 3.0 * torch.sin(u * 11.0)) * (1 - 40 * footprint).clamp(0)
    tone = 1 + row[m.VARIATION] * noise + row[m.GRAIN] * grain
    phase = row[m.PHASE]
    stain = torch.sin(3.1 * u + phase + 2.0 * torch.sin(2.3 * v)) * torch.sin(3.7 * v - 1.7 * phase)
    tone = tone * (1 - row[m.WEAR] * stain.abs())

    joint = torch.maximum(
        _edge(0.5 - fu.abs() - row[m.JOINT_U], soft_u) * (row[m.JOINT_U] > 0),
        _edge(0.5 - fv.abs() - row[m.JOINT_V], soft_v) * (row[m.JOINT_V] > 0),
    )
    soft = footprint + 1e-4
    band = torch.maximum(
        _edge((v - row[m.BAND_1]).abs() - row[m.WIDTH_1], soft),
        _edge((v - row[m.BAND_2]).abs() - row[m.WIDTH_2], soft),
    )
    frame = _edge(0.5 - (u - 0.5).abs() - row[m.FRAME], soft) * (row[m.FRAME] > 0)
    trim = torch.maximum(torch.maximum(joint, band), frame)
    shown = torch.where(plain, 0.0, trim)
    second = torch.where(plain, 0.0, second)
    channels = []
    for first, other, edge in zip(row[m.FIRST], row[m.SECOND], row[m.TRIM], strict=True):
        color = torch.lerp(first, other, second) * tone
        channels.append(torch.lerp(color, edge, shown))
    return torch.stack(channels)
