// Sums of features over an axis of a tensor, a tile at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tile.h"

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
