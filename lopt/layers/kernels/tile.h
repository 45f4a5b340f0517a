// Vectors and tiles: what fits the registers of the machine.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

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
