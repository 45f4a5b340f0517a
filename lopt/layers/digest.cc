// `lopt.layers.digest` on CPUs, as one XLA custom call: a pointwise network at every weight of a tensor, and what a linear equivariant
// layer needs of its features, which never leave the L1 cache.
//
// A tile of a few dozen weights goes through all layers before the next one is read. A product keeps ROWS channels times COLUMNS vectors
// of weights in registers and multiplies one broadcast coefficient with COLUMNS vectors of features: it is bound by multiplications, not
// by memory. Matrices are copied once a call, so that the coefficients of ROWS channels are neighbours.
//
// A tensor is cut into parts by its shape alone, and what is summed over parts is added in their order: nothing depends on threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8, COLUMNS = 3;  // 24 sums, 3 features and a coefficient in 32 registers
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 4, COLUMNS = 3;  // 12, 3 and 1 in 16
#else
constexpr int LANES = 4, ROWS = 4, COLUMNS = 3;
#endif
constexpr int64_t TILE = LANES * COLUMNS;  // weights that go through the layers together
constexpr int64_t PART = 512;              // weights that are worth another thread
constexpr int64_t MOST_PARTS = 16;         // each has sums of its own
using Vector = float __attribute__((vector_size(LANES * sizeof(float))));

Vector Load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

void Store(float* to, Vector v) { std::memcpy(to, &v, sizeof(v)); }

class Floats {  // zeros that begin a cache line
 public:
  explicit Floats(int64_t size) : lines_((size + 15) / 16) {}
  float* data() { return lines_.data()->values; }
  const float* data() const { return lines_.data()->values; }

 private:
  struct alignas(64) Line {
    float values[16];
  };
  std::vector<Line> lines_;
};

// y[r, :] = sum over k of w[k, r] x[k, :] + bias[r] for r < COUNT, or its positive part; w has rows of ROWS. NaN stays NaN.
template <int COUNT>
void MultiplyRows(const float* w, const float* bias, const float* x, float* y, int64_t inputs, bool relu) {
  Vector sums[COUNT][COLUMNS];
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) sums[r][c] = bias[r] + Vector{};
  for (int64_t k = 0; k < inputs; ++k, w += ROWS, x += TILE) {
    Vector features[COLUMNS];
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) features[c] = Load(x + c * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; ++c) sums[r][c] += w[r] * features[c];
  }
#pragma GCC unroll 8
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) {
      Vector v = sums[r][c];
      if (relu) v = v < 0.0f ? Vector{} : v;
      Store(y + r * TILE + c * LANES, v);
    }
}

template <int COUNT>
void MultiplyLastRows(int64_t count, const float* w, const float* bias, const float* x, float* y, int64_t inputs, bool relu) {
  if (count == COUNT) return MultiplyRows<COUNT>(w, bias, x, y, inputs, relu);
  if constexpr (COUNT > 1) MultiplyLastRows<COUNT - 1>(count, w, bias, x, y, inputs, relu);
}

// A dense layer: kernel [inputs, outputs], its rows times scale [inputs] if there is one; bias [outputs] or none.
class Dense {
 public:
  Dense(const float* kernel, const float* bias, const float* scale, int64_t inputs, int64_t outputs, bool relu)
      : inputs_(inputs), outputs_(outputs), relu_(relu), weights_(Padded(outputs) * inputs), bias_(Padded(outputs)) {
    for (int64_t first = 0; first < outputs; first += ROWS)
      for (int64_t k = 0; k < inputs; ++k)
        for (int64_t r = 0; r < std::min<int64_t>(ROWS, outputs - first); ++r)
          weights_.data()[first * inputs + k * ROWS + r] = kernel[k * outputs + first + r] * (scale == nullptr ? 1.0f : scale[k]);
    if (bias != nullptr) std::copy_n(bias, outputs, bias_.data());
  }

  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }

  // x [inputs, TILE] to y [outputs, TILE].
  void Apply(const float* x, float* y) const {
    int64_t r = 0;
    for (; r + ROWS <= outputs_; r += ROWS)
      MultiplyRows<ROWS>(weights_.data() + r * inputs_, bias_.data() + r, x, y + r * TILE, inputs_, relu_);
    if (r < outputs_)
      MultiplyLastRows<ROWS>(outputs_ - r, weights_.data() + r * inputs_, bias_.data() + r, x, y + r * TILE, inputs_, relu_);
  }

 private:
  static int64_t Padded(int64_t outputs) { return (outputs + ROWS - 1) / ROWS * ROWS; }

  int64_t inputs_, outputs_;
  bool relu_;
  Floats weights_;  // ROWS channels -> [inputs, ROWS]
  Floats bias_;
};

// Calls work(part) for all parts, on this thread and, if free, on others of the pool, so many in all. No thread waits for a part that none has begun:
// a pool whose threads all wait here does not lock up.
template <typename Work>
void ForParts(ffi::ThreadPool& pool, int64_t threads, int64_t parts, const Work& work) {
  threads = std::min({threads, parts, pool.num_threads()});
  if (threads <= 1) {
    for (int64_t part = 0; part < parts; ++part) work(part);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  auto take = [shared, parts, &work] {  // `work` is there as long as a part is left to take
    int64_t taken = 0;
    for (int64_t part; (part = shared->next.fetch_add(1)) < parts; ++taken) work(part);
    if (taken == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    if ((shared->done += taken) == parts) shared->all_done.notify_all();
  };
  for (int64_t i = 1; i < threads; ++i) pool.Schedule(std::function<void()>(take));
  take();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == parts; });
}

// The sum of COUNT neighbours, a power of two, by halves.
template <int COUNT>
float Total(const float* from) {
  if constexpr (COUNT == 1) {
    return from[0];
  } else {
    float halves[COUNT / 2];
    for (int i = 0; i < COUNT / 2; ++i) halves[i] = from[i] + from[COUNT / 2 + i];
    return Total<COUNT / 2>(halves);
  }
}

// Sums over one axis of a tensor: [channels, others], where weight n belongs to n / (size post) post + n % post of the others.
struct Sums {
  int64_t size, post, others;
  float* totals;
  Floats lanes;  // [channels, LANES]: of a last axis longer than a tile, the sums of neighbours that are not yet in totals

  // Adds y [channels, TILE], the features of weights n, n + 1, ..., n + count - 1; `last`: those that follow are not neighbours.
  void Add(const float* y, int64_t channels, int64_t n, int64_t count, bool last) {
    for (int64_t done = 0, run; done < count; done += run) {
      int64_t at = n + done, inner = at % post, target = at / (size * post) * post + inner;
      if (post > 1) {  // neighbours go to neighbours
        run = std::min(post - inner, count - done);
        for (int64_t c = 0; c < channels; ++c) AddTo(totals + c * others + target, y + c * TILE + done, run);
        continue;
      }
      run = std::min(size - at % size, count - done);  // the last axis: neighbours are summed
      if (size <= TILE) {
        AddRun(y + done, channels, run, totals + target, others);
        continue;
      }
      if (run == TILE)
        for (int64_t c = 0; c < channels; ++c) {
          Vector sum = Load(lanes.data() + c * LANES);
          for (int i = 0; i < COLUMNS; ++i) sum += Load(y + c * TILE + i * LANES);
          Store(lanes.data() + c * LANES, sum);
        }
      else
        AddRun(y + done, channels, run, lanes.data(), LANES);
      if ((at + run) % size == 0 || (last && done + run == count)) {
        for (int64_t c = 0; c < channels; ++c) totals[c * others + target] += Total<LANES>(lanes.data() + c * LANES);
        std::fill_n(lanes.data(), channels * LANES, 0.0f);
      }
    }
  }

  static void AddTo(float* to, const float* from, int64_t count) {
    if (count == TILE)
      for (int64_t i = 0; i < TILE; i += LANES) Store(to + i, Load(to + i) + Load(from + i));
    else
      for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  }

  // to[c * stride] += the sum of y[c, 0], ..., y[c, count - 1].
  static void AddRun(const float* y, int64_t channels, int64_t count, float* to, int64_t stride) {
    int64_t vectors = count / LANES * LANES, c = 0;
    if (vectors > 0)
      for (int64_t k = 0; k < channels; ++k) {
        Vector sum = Load(y + k * TILE);
        for (int64_t i = LANES; i < vectors; i += LANES) sum += Load(y + k * TILE + i);
        float lanes[LANES];
        Store(lanes, sum);
        to[k * stride] += Total<LANES>(lanes);
      }
    for (; c + 8 <= channels && vectors < count; c += 8) {  // eight sums that do not wait for each other
      float sums[8] = {};
      for (int64_t i = vectors; i < count; ++i)
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) sums[k] += y[(c + k) * TILE + i];
      for (int k = 0; k < 8; ++k) to[(c + k) * stride] += sums[k];
    }
    for (; c < channels; ++c)
      for (int64_t i = vectors; i < count; ++i) to[c * stride] += y[c * TILE + i];
  }
};

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
// `shape` of the tensor; at most so many `threads` work on it.
ffi::Error DigestImpl(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t threads, int64_t inputs,
                      ffi::Span<const int64_t> shape, ffi::Span<const int64_t> sums) {
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
    layers.emplace_back(floats(next), floats(next + 1), scale, dimension(next, 0), dimension(next, 1), /*relu=*/true);
  }
  layers.emplace_back(floats(matrix), nullptr, nullptr, dimension(matrix, 0), dimension(matrix, 1), /*relu=*/false);
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
                                  .Attr<int64_t>("inputs")
                                  .Attr<ffi::Span<const int64_t>>("shape")
                                  .Attr<ffi::Span<const int64_t>>("sums"));
