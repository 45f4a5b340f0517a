// One step of what a learned optimizer keeps and sees, as one XLA custom call: accumulators, channels, the pointwise network, and what the
// last layer needs of its features, without an array of channels or features in memory.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "call.h"
#include "computed.h"
#include "dense.h"
#include "parts.h"
#include "program.h"
#include "tensor.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int ACCUMULATOR = 2, FORM = 4, SCALE = 4;  // numbers of each

Program ReadProgram(ffi::Span<const double> kept, Counts forms, ffi::Span<const float> scales, int32_t count) {
  Program program;
  for (const double* each = kept.begin(); each < kept.end(); each += ACCUMULATOR) {
    double decay = each[1], rest = decay > 0 ? -std::expm1((count + 1.0) * std::log(decay)) : 1.0;
    program.kept.push_back({static_cast<Rule>(each[0]), static_cast<float>(decay), static_cast<float>(1 - decay),
                            static_cast<float>(1 / rest)});
  }
  const float* scale = scales.begin();
  for (const int64_t* form = forms.begin(); form < forms.end(); form += FORM, scale += SCALE + 1)
    program.forms.push_back({static_cast<Source>(form[0]), form[1], form[2], form[3] != 0, scale[SCALE],
                             {scale[0], scale[1], scale[2], scale[3] != 0.0f}});
  return program;
}

// args: kernels and biases of the layers in turn, `layers` of them; the number of steps done, int32 []; for every tensor weights, gradients,
// the arrays of every accumulator (of a FACTORED rows and columns), a matrix, and its bias of the first layer. rets: for every tensor these
// arrays a step later, the last layer's features times its matrix, [K, weights], and their sums over each of its axes that `sums`
// names, [C, the other axes].
//
// `shapes` of the tensors one after another, `ranks` numbers each, and so `sums`, `sum_counts` each. `axes`: four for each tensor, size of
// its largest axis and weights between two of its indices, and of its second largest; zeros for vectors. `matrices`: in how many parts, one
// behind the other, each tensor has scales of their own. `kept`, `forms` and `scales`: the program, see `ReadProgram`. With `bfloat16` the operands of the layers' products are rounded; at most so many `threads` work.
ffi::Error StepImpl(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t threads, bool bfloat16,
                    int64_t layers, Counts ranks, Counts shapes, Counts sum_counts, Counts sums, Counts axes, Counts matrices,
                    ffi::Span<const double> kept, Counts forms, ffi::Span<const float> scales) {
  Operands operands(args, rets);
  std::vector<Dense> network = operands.Layers(layers, bfloat16);
  const Program program = ReadProgram(kept, forms, scales, *reinterpret_cast<const int32_t*>(operands.Take()));
  int64_t width = 0;
  for (const Dense& layer : network) width = std::max({width, layer.inputs(), layer.outputs()});

  std::vector<Tensor> tensors;
  std::vector<ComputedChannels> channels;
  const int64_t *shape = shapes.begin(), *axis = sums.begin(), *sides = axes.begin();
  for (size_t t = 0; t < ranks.size(); shape += ranks[t++], sides += 4) {
    const float* value = operands.Take();
    const float* gradient = operands.Take();
    std::vector<Kept> arrays(program.kept.size());
    for (size_t k = 0; k < arrays.size(); ++k)
      for (int i = 0; i < (program.kept[k].rule == Rule::FACTORED ? 2 : 1); ++i) {
        arrays[k].before[i] = operands.Take();
        arrays[k].after[i] = operands.Result();
      }
    tensors.push_back(operands.Read(std::vector<int64_t>(shape, shape + ranks[t]), network.front()));
    channels.emplace_back(program, tensors.back().cut(), Axes{{sides[0], sides[1]}, {sides[2], sides[3]}}, matrices.begin()[t],
                          value, gradient, std::move(arrays));
    width = std::max(width, tensors.back().outputs());
    for (int64_t i = 0; i < sum_counts[t]; ++i) tensors.back().SumOver(*axis++, operands.Result());
  }

  auto parts = AllParts(tensors);
  threads = Threads(threads, tensors);
  auto for_parts = [&](const auto& work) {
    ForParts(pool, threads, parts.size(), [&](int64_t i) { work(parts[i].first, parts[i].second); });
  };
  for_parts([&](size_t t, int64_t part) {
    if (channels[t].sided()) channels[t].SumSquares(part);
  });
  for (ComputedChannels& each : channels) each.FinishSides();
  for_parts([&](size_t t, int64_t part) { channels[t].Accumulate(part); });
  for (ComputedChannels& each : channels) each.FindScales();
  for_parts([&](size_t t, int64_t part) { tensors[t].Digest(part, channels[t], network, width); });
  for (Tensor& tensor : tensors) tensor.Finish();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LoptStep, StepImpl,
                              Binding()
                                  .Attr<Counts>("axes")
                                  .Attr<Counts>("matrices")
                                  .Attr<ffi::Span<const double>>("kept")
                                  .Attr<Counts>("forms")
                                  .Attr<ffi::Span<const float>>("scales"));
