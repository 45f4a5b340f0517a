// What the kernels' custom calls have in common: reading arguments, and the layers over the parts of all tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "channels.h"
#include "dense.h"
#include "parts.h"
#include "tensor.h"
#include "xla/ffi/api/ffi.h"

using Counts = xla::ffi::Span<const int64_t>;

// What every call is given, in this order; each has attributes of its own besides.
inline auto Binding() {
  return xla::ffi::Ffi::Bind()
      .Ctx<xla::ffi::ThreadPool>()
      .RemainingArgs()
      .RemainingRets()
      .Attr<int64_t>("threads")
      .Attr<bool>("bfloat16")
      .Attr<int64_t>("layers")
      .Attr<Counts>("ranks")
      .Attr<Counts>("shapes")
      .Attr<Counts>("sum_counts")
      .Attr<Counts>("sums");
}

// Arguments and results one after another; each is taken once.
class Operands {
 public:
  Operands(const xla::ffi::RemainingArgs& args, xla::ffi::RemainingRets& rets) : args_(args), rets_(rets) {}

  float* Take() { return reinterpret_cast<float*>(args_.get<xla::ffi::AnyBuffer>(arg_++)->untyped_data()); }
  float* Result() { return reinterpret_cast<float*>((*rets_.get<xla::ffi::AnyBuffer>(ret_++))->untyped_data()); }
  int64_t Dimension(int axis) const { return args_.get<xla::ffi::AnyBuffer>(arg_)->dimensions()[axis]; }  // of the next argument

  // Kernels and biases of layers in turn.
  std::vector<Dense> Layers(int64_t layers, bool bfloat16) {
    std::vector<Dense> network;
    for (int64_t layer = 0; layer < layers; ++layer) {
      int64_t inputs = Dimension(0), outputs = Dimension(1);
      const float* kernel = Take();
      network.emplace_back(kernel, Take(), inputs, outputs, /*relu=*/true, bfloat16);
    }
    return network;
  }

  // A tensor's matrix and its bias of the first layer; its product is the next result.
  Tensor Read(std::vector<int64_t> shape, const Dense& first) {
    int64_t inputs = Dimension(0), outputs = Dimension(1);
    Dense last(Take(), nullptr, inputs, outputs, /*relu=*/false, /*pairs=*/false);
    Floats bias = first.Biases(Take());
    return Tensor(std::move(shape), std::move(last), std::move(bias), Result());
  }

 private:
  const xla::ffi::RemainingArgs& args_;
  xla::ffi::RemainingRets& rets_;
  size_t arg_ = 0, ret_ = 0;
};

// Parts of all tensors, by the index of a tensor and of its part: large ones first, that no thread begins one when others are done.
inline std::vector<std::pair<size_t, int64_t>> AllParts(const std::vector<Tensor>& tensors) {
  std::vector<std::pair<size_t, int64_t>> parts;
  for (size_t t = 0; t < tensors.size(); ++t)
    for (int64_t part = 0; part < tensors[t].cut().parts(); ++part) parts.emplace_back(t, part);
  auto size = [&](const auto& part) { return tensors[part.first].cut().count() / tensors[part.first].cut().parts(); };
  std::stable_sort(parts.begin(), parts.end(), [&](const auto& a, const auto& b) { return size(a) > size(b); });
  return parts;
}

// At most so many threads for all tensors together.
inline int64_t Threads(int64_t threads, const std::vector<Tensor>& tensors) {
  int64_t weights = 0;
  for (const Tensor& tensor : tensors) weights += tensor.cut().count();
  return std::min(threads, std::max<int64_t>(weights / PART, 1));
}
