"""What several kernels of the method have in common."""

import triton
import triton.language as tl

# The strides of a tensor (B, K, H, W), and sizes of images, for which no kernel is compiled anew.
STRIDES = ['image_stride', 'plane_stride', 'row_stride', 'column_stride']
SIZES = ['height', 'width', 'rows', 'columns']


@triton.jit
def count_each(counts, index, end):
    """Add to `counts` how often each index occurs; `end`, above all others, does not count."""
    # What is counted together is added at once: additions to one address wait for each other.
    smallest = tl.min(index, 0)
    while smallest < end:
        is_same = index == smallest
        count = tl.sum(is_same.to(counts.dtype.element_ty), 0)
        tl.atomic_add(counts + smallest, count, sem='relaxed')
        index = tl.where(is_same, end, index)
        smallest = tl.min(index, 0)


@triton.jit
def nearest_inside(row, column, rows, columns):
    """The row and column that stand in for those beyond the border."""
    row = tl.minimum(tl.maximum(row, 0), rows - 1)
    return row, tl.minimum(tl.maximum(column, 0), columns - 1)


@triton.jit
def between(pixel, scale, length):
    """The two of so many patches that a pixel lies between, and how far along."""
    position = tl.maximum((pixel.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    before = tl.minimum(position.to(tl.int32), length - 1)
    return before, tl.minimum(before + 1, length - 1), position - before.to(tl.float32)


@triton.jit
def corners_around(row, column, down_scale, across_scale, height, width, row_stride, column_stride):
    """Places of the four patches that a pixel lies between, and how far down and across."""
    top, bottom, down = between(row, down_scale, height)
    left, right, across = between(column, across_scale, width)
    top, bottom = top * row_stride, bottom * row_stride
    left, right = left * column_stride, right * column_stride
    return (top + left, top + right, bottom + left, bottom + right), down, across


@triton.jit
def load_corners(patches, corners, inside):
    """What `patches` hold at `corners_around`: upper left and right, lower left and right."""
    upper_left = tl.load(patches + corners[0], mask=inside, other=0.0)
    upper_right = tl.load(patches + corners[1], mask=inside, other=0.0)
    lower_left = tl.load(patches + corners[2], mask=inside, other=0.0)
    lower_right = tl.load(patches + corners[3], mask=inside, other=0.0)
    return upper_left, upper_right, lower_left, lower_right


@triton.jit
def enlarged(patches, corners, down, across, inside):
    """`patches` at pixels, summed in the order of PyTorch's bilinear enlargement."""
    upper_left, upper_right, lower_left, lower_right = load_corners(patches, corners, inside)
    upper = (1 - across) * upper_left + across * upper_right
    lower = (1 - across) * lower_left + across * lower_right
    return (1 - down) * upper + down * lower


@triton.jit
def window(cell, length, cells):
    """From which pixel to before which a cell lies, where `cells` divide a `length` of pixels.

    As in `torch.nn.functional.interpolate` of the mode 'area'.
    """
    return cell * length // cells, ((cell + 1) * length + cells - 1) // cells


@triton.jit
def mean_colours(
    picture,
    plane_stride,
    row_stride,
    column_stride,
    top,
    bottom,
    left,
    right,
    BLOCK: tl.constexpr,
):
    """Mean red, green and blue of a window of a uint8 picture, 0..1, and a fourth value, 0."""
    colour = tl.arange(0, 4)[:, None]
    pixels = (bottom - top) * (right - left)
    total = tl.zeros((4, BLOCK), tl.int32)
    for first in range(0, pixels, BLOCK):
        pixel = first + tl.arange(0, BLOCK)
        row = top + pixel // (right - left)
        column = left + pixel % (right - left)
        at = row * row_stride + column * column_stride
        value = tl.load(
            picture + colour * plane_stride + at[None, :],
            mask=(colour < 3) & (pixel[None, :] < pixels),
            other=0,
        )
        total += value.to(tl.int32)
    return tl.sum(total, 1).to(tl.float32) / (255.0 * pixels)
