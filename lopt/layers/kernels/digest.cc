// `lopt.layers.digest` on CPUs, as one XLA custom call: a pointwise network at every weight of some tensors, and what a linear equivariant
// layer needs of its features, which never leave the L1 cache: a tile of a few dozen weights goes through all layers before the next one
// is read.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "dense.h"
#include "parts.h"
#include "tensor.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Counts = ffi::Span<const int64_t>;

// args: kernels and biases of the layers in turn, `layers` of them; for every tensor `inputs` arrays [weights], its channels, a matrix, and
// its bias of the first layer. rets: for every tensor the last layer's features times its matrix, [K, weights], and their sums over
// each of its axes that `sums` names, [C, the other axes].
//
// `shapes` of the tensors one after another, `ranks` numbers each, and so `sums`, `sum_counts` each; of every
// channel `scales` has four. With `bfloat16` the operands of
// the layers' products are rounded; at most so many `threads` work.
ffi::Error DigestImpl(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t threads, bool bfloat16,
                      int64_t layers, Counts inputs, Counts ranks, Counts shapes, Counts sum_counts, Counts sums,
                      ffi::Span<const float> scales) {
  auto floats = [&](size_t i) { return reinterpret_cast<float*>(args.get<ffi::AnyBuffer>(i)->untyped_data()); };
  auto dimension = [&](size_t i, int axis) { return args.get<ffi::AnyBuffer>(i)->dimensions()[axis]; };
  auto result = [&](size_t i) { return reinterpret_cast<float*>((*rets.get<ffi::AnyBuffer>(i))->untyped_data()); };

  size_t arg = 0, ret = 0;
  std::vector<Dense> network;
  for (int64_t layer = 0; layer < layers; ++layer, arg += 2)
    network.emplace_back(floats(arg), floats(arg + 1), dimension(arg, 0), dimension(arg, 1), /*relu=*/true, bfloat16);
  int64_t width = 0, weights = 0;
  for (const Dense& layer : network) width = std::max({width, layer.inputs(), layer.outputs()});

  std::vector<Tensor> tensors;
  const int64_t *shape = shapes.begin(), *axis = sums.begin();
  const float* scale = scales.begin();
  for (size_t t = 0; t < ranks.size(); ++t) {
    std::vector<const float*> rows;
    int64_t count = 1;
    for (int64_t i = 0; i < ranks[t]; ++i) count *= shape[i];
    std::vector<Scale> declared;
    for (int64_t i = 0; i < inputs[t]; ++i, ++arg, scale += 4) {
      rows.push_back(floats(arg));
      declared.push_back({scale[0], scale[1], scale[2], scale[3] != 0.0f});
    }
    Dense last(floats(arg), nullptr, dimension(arg, 0), dimension(arg, 1), /*relu=*/false, /*pairs=*/false);
    width = std::max(width, last.outputs());
    tensors.emplace_back(std::vector<int64_t>(shape, shape + ranks[t]), std::move(rows), std::move(declared), std::move(last),
                         network.front().Biases(floats(++arg)), result(ret++));
    for (int64_t i = 0; i < sum_counts[t]; ++i) tensors.back().SumOver(*axis++, result(ret++));
    shape += ranks[t], ++arg, weights += count;
  }

  std::vector<std::pair<Tensor*, int64_t>> channels, parts;
  for (Tensor& tensor : tensors) {
    for (int64_t c = 0; c < tensor.channels(); ++c) channels.emplace_back(&tensor, c);
    for (int64_t part = 0; part < tensor.parts(); ++part) parts.emplace_back(&tensor, part);
  }
  // Large parts come first, that no thread begins one when the others are done.
  auto size = [](const auto& part) { return part.first->count() / part.first->parts(); };
  std::stable_sort(parts.begin(), parts.end(), [&](const auto& a, const auto& b) { return size(a) > size(b); });

  threads = std::min(threads, std::max<int64_t>(weights / PART, 1));
  ForParts(pool, threads, channels.size(), [&](int64_t i) { channels[i].first->FindScale(channels[i].second); });
  ForParts(pool, threads, parts.size(), [&](int64_t i) { parts[i].first->Digest(parts[i].second, network, width); });
  for (Tensor& tensor : tensors) tensor.Finish();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LoptDigest, DigestImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("threads")
                                  .Attr<bool>("bfloat16")
                                  .Attr<int64_t>("layers")
                                  .Attr<Counts>("inputs")
                                  .Attr<Counts>("ranks")
                                  .Attr<Counts>("shapes")
                                  .Attr<Counts>("sum_counts")
                                  .Attr<Counts>("sums")
                                  .Attr<ffi::Span<const float>>("scales"));

extern "C" bool LoptHasBfloat16() { return HAS_BFLOAT16; }
