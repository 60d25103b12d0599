"""The functions, methods and layers that a saved model may name.

A file that is loaded may come from anywhere, so it may call only what is listed here by name: arithmetic,
shapes, reductions, pooling, normalisation. Nothing listed opens a file, loads a library, imports a module,
takes a function as an argument, hands out raw memory (``data_ptr``, ``numpy``, ``set_``, ``resize_``,
``as_strided``) or reaches an attribute by name. A name that this torch does not have is left out.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

_OPERATOR = """
add sub mul truediv floordiv mod pow matmul neg pos abs invert and_ or_ xor lshift rshift eq ne lt le gt
ge getitem iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor
"""

_MATH = "ceil exp floor log log2 pow sqrt trunc"

# Names that are both a function of torch and a method of a tensor.
_BOTH = """
abs absolute acos acosh add addcdiv addcmul angle asin asinh atan atan2 atanh bitwise_and bitwise_not
bitwise_or bitwise_xor ceil clamp clamp_max clamp_min clip copysign cos cosh deg2rad div divide eq erf
erfc erfinv exp exp2 expm1 fix float_power floor floor_divide fmod frac ge greater greater_equal gt hypot
isclose isfinite isinf isnan ldexp le lerp less less_equal lgamma log log10 log1p log2 logaddexp
logical_and logical_not logical_or logical_xor logit lt maximum minimum mul multiply nan_to_num ne neg
negative not_equal positive pow rad2deg reciprocal relu remainder round rsqrt sgn sigmoid sign sin sinc
sinh sqrt square sub subtract tan tanh true_divide trunc where xlogy softmax log_softmax
all amax amin aminmax any argmax argmin argsort count_nonzero cummax cummin cumprod cumsum kthvalue
logcumsumexp logsumexp max mean median min nanmean nansum norm prod quantile sort std sum topk var
broadcast_to chunk clone detach diag diag_embed diagonal dsplit flatten flip fliplr flipud gather
hsplit index_add index_copy index_fill index_select masked_fill masked_scatter masked_select moveaxis
movedim narrow numel permute ravel repeat_interleave reshape roll rot90 scatter scatter_add select split
split_with_sizes squeeze swapaxes swapdims t take take_along_dim tensor_split tile transpose tril triu
unbind unflatten unsqueeze vsplit addbmm addmm addmv baddbmm bmm cross dot inner matmul mm mv outer
is_complex is_floating_point
"""

_TORCH = """
arange atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors bucketize cat cdist celu column_stack
complex concat concatenate dstack einsum eye full full_like hstack kron linspace meshgrid ones ones_like polar prelu
real imag rms_norm scalar_tensor searchsorted selu stack std_mean tensordot threshold tril_indices
triu_indices var_mean view_as_complex view_as_real vstack zeros zeros_like
"""

_LINALG = "matrix_norm norm vector_norm"

_TENSOR = """
bfloat16 bool byte char contiguous cpu dim double element_size expand expand_as float half int item long
ndimension nelement new_full new_ones new_zeros repeat reshape_as short size stride sum_to_size to
type_as unfold view view_as abs_ add_ addcdiv_ addcmul_ bitwise_and_ bitwise_or_ ceil_ clamp_ clamp_max_
clamp_min_ copy_ cos_ div_ eq_ exp_ fill_ floor_ index_add_ index_copy_ index_fill_ lerp_ log_
logical_and_ logical_not_ logical_or_ masked_fill_ masked_scatter_ mul_ nan_to_num_ neg_ pow_ reciprocal_
relu_ remainder_ round_ rsqrt_ scatter_ scatter_add_ sigmoid_ sign_ sin_ sqrt_ square_ squeeze_ sub_ t_
tanh_ transpose_ tril_ triu_ trunc_ unsqueeze_ zero_
"""

_FUNCTIONAL = """
celu celu_ elu elu_ gelu glu hardshrink hardsigmoid hardswish hardtanh hardtanh_ leaky_relu leaky_relu_
log_softmax logsigmoid mish prelu relu relu6 relu_ rrelu selu selu_ sigmoid silu softmax softmin softplus
softshrink softsign tanh tanhshrink threshold threshold_
batch_norm group_norm instance_norm layer_norm local_response_norm normalize rms_norm
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d fold unfold linear bilinear
embedding embedding_bag one_hot scaled_dot_product_attention
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d lp_pool3d max_pool1d max_pool2d
max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool1d
max_unpool2d max_unpool3d adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices
adaptive_max_pool3d_with_indices alpha_dropout dropout dropout1d dropout2d dropout3d
feature_alpha_dropout
affine_grid channel_shuffle cosine_similarity grid_sample interpolate pad pairwise_distance pdist
pixel_shuffle pixel_unshuffle upsample upsample_bilinear upsample_nearest
"""

_LAYERS = """
CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish PReLU
ReLU ReLU6 RReLU SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink
Threshold Identity Linear Bilinear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
Fold Unfold BatchNorm1d BatchNorm2d BatchNorm3d GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d
LayerNorm LocalResponseNorm CrossMapLRN2d RMSNorm
AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d LPPool3d MaxPool1d MaxPool2d MaxPool3d
MaxUnpool1d MaxUnpool2d MaxUnpool3d
CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d
ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d ZeroPad1d ZeroPad2d
ZeroPad3d AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout
Embedding EmbeddingBag MultiheadAttention GRU GRUCell LSTM LSTMCell RNN RNNCell
ChannelShuffle CosineSimilarity Flatten PairwiseDistance PixelShuffle PixelUnshuffle Unflatten Upsample
UpsamplingBilinear2d UpsamplingNearest2d
"""

_MODULES: dict[str, tuple[Any, str]] = {
    "operator": (operator, _OPERATOR),
    "math": (math, _MATH),
    "torch": (torch, _BOTH + _TORCH),
    "torch.linalg": (torch.linalg, _LINALG),
    "torch.nn.functional": (torch.nn.functional, _FUNCTIONAL),
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{module}.{name}": getattr(owner, name)
    for module, (owner, names) in _MODULES.items()
    for name in names.split()
    if hasattr(owner, name)
}
"""Function by the name it is saved under, for example ``"torch.nn.functional.relu"``."""

FUNCTION_NAMES: dict[Callable[..., Any], str] = {}
"""The same the other way round; of several names for one function the first."""
for _name, _function in FUNCTIONS.items():
    FUNCTION_NAMES.setdefault(_function, _name)

METHODS: frozenset[str] = frozenset(name for name in (_BOTH + _TENSOR).split() if hasattr(torch.Tensor, name))
"""Tensor methods a graph may call."""

ATTRIBUTES: frozenset[str] = frozenset(("shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "real", "imag"))
"""Tensor attributes a graph may read."""

LAYERS: dict[str, type[torch.nn.Module]] = {
    name: getattr(torch.nn, name) for name in _LAYERS.split() if hasattr(torch.nn, name)
}
"""Layers of torch.nn that are saved as their class name and constructor arguments."""
