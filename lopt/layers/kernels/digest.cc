// `lopt.layers.digest` on CPUs, as one XLA custom call: a pointwise network at every weight of a tensor, and what a linear equivariant
// layer needs of its features, which never leave the L1 cache: a tile of a few dozen weights goes through all layers before the next one
// is read.
//
// A tensor is cut into parts by its shape alone, and what is summed over parts is added in their order: nothing depends on threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "dense.h"
#include "parts.h"
#include "sums.h"
#include "tile.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t PART = 512;       // weights that are worth another thread
constexpr int64_t MOST_PARTS = 16;  // each has sums of its own

struct Channels {  // [count, weights]
  const float* values;
  int64_t count;
};

float Clip(float x) { return x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x; }  // NaN stays NaN

// 1 / (root mean square + 1e-5) of every channel, clipped: `lopt.layers.digest.channel_scale`.
std::vector<float> Scales(ffi::ThreadPool& pool, int64_t threads, const std::vector<Channels>& channels, int64_t count) {
  std::vector<const float*> rows;
  for (const Channels& input : channels)
    for (int64_t c = 0; c < input.count; ++c) rows.push_back(input.values + c * count);
  constexpr int64_t RUN = 4096;  // summed in float32, the runs in float64
  std::vector<float> scales(rows.size());
  auto work = [&](int64_t row) {
    double total = 0;
    for (int64_t start = 0; start < count; start += RUN) {
      int64_t end = std::min(start + RUN, count), n = start;
      float lanes[4 * LANES] = {};
      for (; n + 4 * LANES <= end; n += 4 * LANES)
        for (int i = 0; i < 4 * LANES; ++i) lanes[i] += Clip(rows[row][n + i]) * Clip(rows[row][n + i]);
      for (; n < end; ++n) lanes[0] += Clip(rows[row][n]) * Clip(rows[row][n]);
      for (float lane : lanes) total += lane;
    }
    scales[row] = 1.0f / (std::sqrt(static_cast<float>(total / static_cast<double>(count))) + 1e-5f);
  };
  ForParts(pool, count < PART ? 1 : threads, rows.size(), work);
  return scales;
}

// args: arrays [c, weights], `inputs` of them, that together are the channels of the features; kernels and biases of the layers in turn; a
// matrix. rets: the last layer's features times the matrix, [K, weights]; their sums over each axis of `sums`, [C, the other axes].
// `shape` of the tensor; with `bfloat16` the operands of the layers' products are rounded; at most so many `threads` work on it.
ffi::Error DigestImpl(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t threads, bool bfloat16,
                      int64_t inputs, ffi::Span<const int64_t> shape, ffi::Span<const int64_t> sums) {
  auto floats = [&](size_t i) { return reinterpret_cast<float*>(args.get<ffi::AnyBuffer>(i)->untyped_data()); };
  auto dimension = [&](size_t i, int axis) { return args.get<ffi::AnyBuffer>(i)->dimensions()[axis]; };
  auto result = [&](size_t i) { return reinterpret_cast<float*>((*rets.get<ffi::AnyBuffer>(i))->untyped_data()); };

  std::vector<Channels> channels;
  for (int64_t i = 0; i < inputs; ++i) channels.push_back({floats(i), dimension(i, 0)});
  float* product = result(0);

  // Parts are runs of indices of the longest axis.
  int64_t rank = shape.size(), count = 1, axis = 0, post = 1;
  for (int64_t i = 0; i < rank; ++i) {
    count *= shape[i];
    if (shape[i] > shape[axis]) axis = i;
  }
  for (int64_t i = axis + 1; i < rank; ++i) post *= shape[i];
  int64_t length = rank == 0 ? 1 : shape[axis], pre = count / (length * post);
  int64_t parts = std::min({MOST_PARTS, length, count / PART, length * post / (4 * TILE)});
  parts = std::max<int64_t>(parts, 1);

  // What a channel is divided by goes into the rows of the first kernel.
  std::vector<float> scales = Scales(pool, threads, channels, count);
  std::vector<Dense> layers;
  size_t next = inputs, matrix = args.size() - 1;
  for (; next < matrix; next += 2) {
    const float* scale = layers.empty() ? scales.data() : nullptr;
    layers.emplace_back(floats(next), floats(next + 1), scale, dimension(next, 0), dimension(next, 1), /*relu=*/true, bfloat16);
  }
  layers.emplace_back(floats(matrix), nullptr, nullptr, dimension(matrix, 0), dimension(matrix, 1), /*relu=*/false, /*pairs=*/false);
  int64_t width = 0;
  for (const Dense& layer : layers) width = std::max({width, layer.inputs(), layer.outputs()});
  int64_t features = layers.back().inputs(), columns = layers.back().outputs();

  std::vector<Sums> all;  // over the axes of `sums`; over the longest one, every part has its own
  std::vector<Floats> own;
  int64_t longest = -1;
  for (size_t i = 0; i < sums.size(); ++i) {
    int64_t behind = 1;
    for (int64_t j = sums[i] + 1; j < rank; ++j) behind *= shape[j];
    int64_t others = count / shape[sums[i]];
    all.push_back({shape[sums[i]], behind, others, result(1 + i), Floats(features * LANES)});
    std::fill_n(result(1 + i), features * others, 0.0f);
    if (sums[i] == axis && parts > 1) {
      longest = i;
      for (int64_t part = 0; part < parts; ++part) own.emplace_back(features * others);
    }
  }

  auto work = [&](int64_t part) {
    Floats buffers(2 * width * TILE);
    std::vector<Sums> mine = all;
    if (longest >= 0) mine[longest].totals = own[part].data();
    int64_t first = length * part / parts, last = length * (part + 1) / parts;
    for (int64_t outer = 0; outer < pre; ++outer) {
      int64_t end = (outer * length + last) * post;
      for (int64_t n = (outer * length + first) * post; n < end; n += TILE) {
        int64_t size = std::min(TILE, end - n);
        float *x = buffers.data(), *y = x + width * TILE, *to = x;
        for (const Channels& input : channels)
          for (int64_t c = 0; c < input.count; ++c, to += TILE) {
            const float* from = input.values + c * count + n;
            for (int64_t i = 0; i < size; ++i) to[i] = Clip(from[i]);
          }
        for (const Dense& layer : layers) {
          if (&layer == &layers.back())
            for (Sums& sum : mine) sum.Add(x, features, n, size, n + size == end);
          layer.Apply(x, y);
          std::swap(x, y);
        }
        for (int64_t c = 0; c < columns; ++c) std::copy_n(x + c * TILE, size, product + c * count + n);
      }
    }
  };
  ForParts(pool, threads, parts, work);

  if (longest >= 0)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t i = 0, end = features * all[longest].others; i < end; ++i) all[longest].totals[i] += own[part].data()[i];
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
                                  .Attr<int64_t>("inputs")
                                  .Attr<ffi::Span<const int64_t>>("shape")
                                  .Attr<ffi::Span<const int64_t>>("sums"));

extern "C" bool LoptHasBfloat16() { return HAS_BFLOAT16; }
