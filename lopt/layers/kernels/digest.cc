// `lopt.layers.digest` on CPUs, as one XLA custom call: a pointwise network at every weight of some tensors, and what a linear equivariant
// layer needs of its features, which never leave the L1 cache: a tile of a few dozen weights goes through all layers before the next one
// is read.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "call.h"
#include "dense.h"
#include "given.h"
#include "parts.h"
#include "tensor.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// args: kernels and biases of the layers in turn, `layers` of them; for every tensor `inputs` arrays [weights], its channels, a matrix, and
// its bias of the first layer. rets: for every tensor the last layer's features times its matrix, [K, weights], and their sums over
// each of its axes that `sums` names, [C, the other axes].
//
// `shapes` of the tensors one after another, `ranks` numbers each, and so `sums`, `sum_counts` each; of every channel `scales` has four.
// With `bfloat16` the operands of the layers' products are rounded; at most so many `threads` work.
ffi::Error DigestImpl(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t threads, bool bfloat16,
                      int64_t layers, Counts ranks, Counts shapes, Counts sum_counts, Counts sums, Counts inputs,
                      ffi::Span<const float> scales) {
  Operands operands(args, rets);
  std::vector<Dense> network = operands.Layers(layers, bfloat16);
  int64_t width = 0;
  for (const Dense& layer : network) width = std::max({width, layer.inputs(), layer.outputs()});

  std::vector<Tensor> tensors;
  std::vector<GivenChannels> channels;
  const int64_t *shape = shapes.begin(), *axis = sums.begin();
  const float* scale = scales.begin();
  for (size_t t = 0; t < ranks.size(); shape += ranks[t++]) {
    std::vector<const float*> rows;
    std::vector<Scale> declared;
    for (int64_t i = 0; i < inputs[t]; ++i, scale += 4) {
      rows.push_back(operands.Take());
      declared.push_back({scale[0], scale[1], scale[2], scale[3] != 0.0f});
    }
    tensors.push_back(operands.Read(std::vector<int64_t>(shape, shape + ranks[t]), network.front()));
    channels.emplace_back(tensors.back().cut().count(), std::move(rows), std::move(declared));
    width = std::max(width, tensors.back().outputs());
    for (int64_t i = 0; i < sum_counts[t]; ++i) tensors.back().SumOver(*axis++, operands.Result());
  }

  std::vector<std::pair<GivenChannels*, int64_t>> unscaled;
  for (GivenChannels& each : channels)
    for (int64_t c = 0; c < each.count(); ++c) unscaled.emplace_back(&each, c);
  auto parts = AllParts(tensors);
  threads = Threads(threads, tensors);
  ForParts(pool, threads, unscaled.size(), [&](int64_t i) { unscaled[i].first->FindScale(unscaled[i].second); });
  ForParts(pool, threads, parts.size(), [&](int64_t i) {
    auto [t, part] = parts[i];
    tensors[t].Digest(part, channels[t], network, width);
  });
  for (Tensor& tensor : tensors) tensor.Finish();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LoptDigest, DigestImpl,
                              Binding().Attr<Counts>("inputs").Attr<ffi::Span<const float>>("scales"));

extern "C" bool LoptHasBfloat16() { return HAS_BFLOAT16; }
