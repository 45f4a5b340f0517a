// Muon's momenta, and of vectors NAdam's step, of all tensors in one pass, as one XLA custom call.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "parts.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t PIECE = 1 << 14;  // weights that are one thread's

// What a step depends on besides gradients and what is kept: decays, and by what averages are multiplied to be unbiased and a step ahead.
struct Decays {
  float decay, of_average, of_gradient;
};

struct Numbers {
  Decays matrices, vectors;
  float second, correction;
};

struct Moments {
  const float *gradient, *mean, *square;  // square: null where there is none, as of matrices
  float *new_mean, *new_square, *step;
  const Numbers* numbers;
  int64_t count;
};

void Advance(const Moments& m, float eps) {
  const Decays how = m.square == nullptr ? m.numbers->matrices : m.numbers->vectors;
  const float rest = 1 - how.decay;
  if (m.square == nullptr) {
    for (int64_t i = 0; i < m.count; ++i) {
      const float mean = how.decay * m.mean[i] + rest * m.gradient[i];
      m.step[i] = how.of_average * mean + how.of_gradient * m.gradient[i];
      m.new_mean[i] = mean;
    }
    return;
  }
  const float second = m.numbers->second, other = 1 - second, correction = m.numbers->correction;
  for (int64_t i = 0; i < m.count; ++i) {
    const float gradient = m.gradient[i];
    const float mean = how.decay * m.mean[i] + rest * gradient, square = second * m.square[i] + other * (gradient * gradient);
    m.step[i] = (how.of_average * mean + how.of_gradient * gradient) / (std::sqrt(square * correction) + eps);
    m.new_mean[i] = mean;
    m.new_square[i] = square;
  }
}

// args: numbers [batch, 8]; of each tensor gradient, mean and, where `squared`, mean square, [batch, ...]; rets: of each the means after this
// gradient, and the step, Nesterov's; all float32. At most so many `threads` work.
ffi::Error MomentsImpl(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t threads,
                       ffi::Span<const int64_t> squared, float eps) {
  ffi::AnyBuffer given = *args.get<ffi::AnyBuffer>(0);
  const int64_t batch = given.element_count() / 8;
  std::vector<Numbers> numbers;
  for (int64_t b = 0; b < batch; ++b) {
    const float* x = reinterpret_cast<const float*>(given.untyped_data()) + 8 * b;
    numbers.push_back({{x[0], x[1], x[2]}, {x[3], x[4], x[5]}, x[6], x[7]});
  }
  std::vector<Moments> pieces;
  size_t arg = 1, ret = 0;
  auto next_in = [&] { return reinterpret_cast<const float*>((*args.get<ffi::AnyBuffer>(arg++)).untyped_data()); };
  auto next_out = [&] { return reinterpret_cast<float*>((*rets.get<ffi::AnyBuffer>(ret++))->untyped_data()); };
  for (int64_t has_square : squared) {
    const int64_t size = static_cast<int64_t>((*args.get<ffi::AnyBuffer>(arg)).element_count()) / batch;
    const float *gradient = next_in(), *mean = next_in(), *square = has_square ? next_in() : nullptr;
    float *new_mean = next_out(), *new_square = has_square ? next_out() : nullptr, *step = next_out();
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = b * size, left = size; left > 0; i += PIECE, left -= PIECE)
        pieces.push_back({gradient + i, mean + i, square ? square + i : nullptr, new_mean + i, new_square ? new_square + i : nullptr,
                          step + i, &numbers[b], std::min(PIECE, left)});
  }
  int64_t work = 0;
  for (const Moments& piece : pieces) work += piece.count;
  ForParts(pool, std::min(threads, work / PIECE + 1), pieces.size(), [&](int64_t i) { Advance(pieces[i], eps); });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LoptMoments, MomentsImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("threads")
                                  .Attr<ffi::Span<const int64_t>>("squared")
                                  .Attr<float>("eps"));
