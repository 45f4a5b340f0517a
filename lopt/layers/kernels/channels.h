// Channels of every weight of a tensor, as the first layer takes them: clipped and normalised, `lopt.layers.digest.Channel`.
#pragma once

#include <cmath>
#include <cstdint>

#include "tile.h"

inline float Clip(float x, float bound) { return x < -bound ? -bound : x > bound ? bound : x; }  // NaN stays NaN

// How a channel is clipped and what it is divided by.
struct Scale {
  float clip, inside, outside;
  bool divided;

  // 1 / (sqrt(mean square + inside) + outside).
  float Factor(double mean) const {
    return divided ? 1.0f / (std::sqrt(static_cast<float>(mean) + inside) + outside) : 1.0f;
  }
};

class Channels {
 public:
  virtual ~Channels() = default;
  virtual int64_t count() const = 0;
  virtual int64_t scratch_rows() const { return 0; }  // tiles of memory of its own that Fill needs

  // Those of weights n, n + 1, ..., n + size - 1 to x [channels, TILE].
  virtual void Fill(int64_t n, int64_t size, float* x, float* scratch) const = 0;
};
