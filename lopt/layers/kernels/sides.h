// Rows and columns of a tensor: averages over one of its two largest axes, and how values at the other axes are spread over weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sums.h"
#include "tile.h"

// One axis of a tensor: weight n belongs to n / (size post) post + n % post of the other axes.
struct Axis {
  int64_t size, post;
};

// Neighbouring weights of a tile that belong to neighbours of the other axes or, of the last axis, to one of them.
struct Run {
  int64_t other, at, length;
};

// The runs of a tile: found once for all that is spread over it.
class Runs {
 public:
  Runs(const Axis& axis, int64_t n, int64_t count) : same_(axis.post == 1) {
    if (count == 0) return;
    int64_t block = n / (axis.size * axis.post), rest = n - block * axis.size * axis.post;
    int64_t inner = same_ ? 0 : rest % axis.post;
    for (int64_t at = 0; at < count; ++count_) {
      Run& run = runs_[count_];
      int64_t left = same_ ? axis.size - rest : axis.post - inner;
      run = {same_ ? block : block * axis.post + inner, at, std::min(left, count - at)};
      at += run.length, rest += left, inner = 0;
      if (rest == axis.size * axis.post) rest = 0, ++block;
    }
  }

  // values [others, and LANES more] to a row of a tile, and up to LANES behind it.
  void Spread(const float* values, float* y) const {
    for (int64_t i = 0; i < count_; ++i) {
      const Run& run = runs_[i];  // what one writes too far the next one overwrites
      if (same_) {
        Vector v = values[run.other] + Vector{};
        for (int64_t j = 0; j < run.length; j += LANES) Store(y + run.at + j, v);
      } else {
        for (int64_t j = 0; j < run.length; j += LANES) Store(y + run.at + j, Load(values + run.other + j));
      }
    }
  }

  // Adds a row of a tile to totals [others].
  void Add(const float* y, float* totals) const {
    for (int64_t i = 0; i < count_; ++i) {
      const Run& run = runs_[i];
      if (same_) {
        totals[run.other] += Total(Sums::Neighbours(y + run.at, run.length));
      } else {
        Sums::AddTo(totals + run.other, y + run.at, run.length);
      }
    }
  }

 private:
  bool same_;
  int64_t count_ = 0;
  Run runs_[TILE];
};

// The sum of squares.
inline double SquareSum(const float* x, int64_t count) {
  constexpr int64_t RUN = 4096;  // summed in float32, the runs in float64
  double total = 0;
  for (int64_t start = 0; start < count; start += RUN) {
    int64_t end = std::min(start + RUN, count), i = start;
    Vector sum{};
    for (; i + LANES <= end; i += LANES) sum += Load(x + i) * Load(x + i);
    total += Total(sum);
    for (; i < end; ++i) total += x[i] * x[i];
  }
  return total;
}
