// Sums of features over an axis of a tensor, a tile at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tile.h"

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
        for (int64_t c = 0; c < channels; ++c) totals[c * others + target] += Total(Neighbours(y + c * TILE + done, run));
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        float* lane = lanes.data() + c * LANES;
        Store(lane, Load(lane) + Neighbours(y + c * TILE + done, run));
      }
      if ((at + run) % size == 0 || (last && done + run == count)) {
        for (int64_t c = 0; c < channels; ++c) totals[c * others + target] += Total(Load(lanes.data() + c * LANES));
        std::fill_n(lanes.data(), channels * LANES, 0.0f);
      }
    }
  }

  static void AddTo(float* to, const float* from, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) Store(to + i, Load(to + i) + Load(from + i));
    if (i < count) StoreFirst(to + i, LoadFirst(to + i, count - i) + LoadFirst(from + i, count - i), count - i);
  }

  // A vector whose sum is that of `count` neighbours.
  static Vector Neighbours(const float* from, int64_t count) {
    Vector sum{};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sum += Load(from + i);
    return i < count ? sum + LoadFirst(from + i, count - i) : sum;
  }
};
