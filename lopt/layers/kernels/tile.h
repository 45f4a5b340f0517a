// Vectors and tiles: what fits the registers of the machine.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8, COLUMNS = 3;  // 24 sums, 3 features and a coefficient in 32 registers
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 4, COLUMNS = 3;  // 12, 3 and 1 in 16
#else
constexpr int LANES = 4, ROWS = 4, COLUMNS = 3;
#endif
constexpr int64_t TILE = LANES * COLUMNS;  // weights that go through the layers together
using Vector = float __attribute__((vector_size(LANES * sizeof(float))));

inline Vector Load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline void Store(float* to, Vector v) { std::memcpy(to, &v, sizeof(v)); }

// The sum of a vector, by halves.
inline float Total(Vector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float sums[LANES];
  Store(sums, v);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[half + i];
  return sums[0];
#endif
}

// The first `count` of a vector, the others zero; and back, leaving what lies behind them.
inline Vector LoadFirst(const float* from, int64_t count) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_loadu_ps((1u << count) - 1, from);
#else
  Vector v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
#endif
}

inline void StoreFirst(float* to, Vector v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)v);
#else
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
#endif
}

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
