// Dense layers applied to tiles. A product keeps ROWS channels times COLUMNS vectors of weights in registers and multiplies one broadcast
// coefficient with COLUMNS vectors of features: it is bound by multiplications, not by memory.
//
// Where the processor multiplies bfloat16, operands may be rounded to it, two channels to a number of 32 bits; sums are float32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tile.h"

#if defined(__AVX512BF16__)
constexpr bool HAS_BFLOAT16 = true;
#else
constexpr bool HAS_BFLOAT16 = false;
#endif

// Two channels of a vector of weights in bfloat16, in the place of one in float32: the first in the lower halves.
inline Vector Pair(Vector first, Vector second) {
#if defined(__AVX512BF16__)
  const __m512i lower_and_upper = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                                   23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  return (Vector)_mm512_permutexvar_epi16(lower_and_upper, halves);
#else
  return first + 0.0f * second;  // never called
#endif
}

// sum + coefficient * features; of pairs, where both are.
template <bool PAIRS>
inline Vector MultiplyAdd(float coefficient, Vector features, Vector sum) {
#if defined(__AVX512BF16__)
  if constexpr (PAIRS) {
    __m512 pair = _mm512_set1_ps(coefficient);
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512)features, (__m512bh)pair);
  }
#endif
  return sum + coefficient * features;
}

// y[r, :] = sum over k of w[k, r] x[k, :] + bias[r] for r < COUNT, or its positive part; w has rows of ROWS. NaN stays NaN.
template <int COUNT, bool PAIRS>
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
      for (int c = 0; c < COLUMNS; ++c) sums[r][c] = MultiplyAdd<PAIRS>(w[r], features[c], sums[r][c]);
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

template <int COUNT, bool PAIRS>
void MultiplyLastRows(int64_t count, const float* w, const float* bias, const float* x, float* y, int64_t inputs, bool relu) {
  if (count == COUNT) return MultiplyRows<COUNT, PAIRS>(w, bias, x, y, inputs, relu);
  if constexpr (COUNT > 1) MultiplyLastRows<COUNT - 1, PAIRS>(count, w, bias, x, y, inputs, relu);
}

// A dense layer: kernel [inputs, outputs]; bias [outputs] or none.
class Dense {
 public:
  Dense(const float* kernel, const float* bias, int64_t inputs, int64_t outputs, bool relu, bool pairs)
      : inputs_(inputs), outputs_(outputs), relu_(relu), pairs_(pairs && HAS_BFLOAT16), weights_(Padded(outputs) * Rows()),
        bias_(Padded(outputs)) {
    auto coefficient = [&](int64_t k, int64_t r) {
      return k < inputs && r < outputs ? kernel[k * outputs + r] : 0.0f;
    };
    for (int64_t first = 0; first < outputs; first += ROWS)
      for (int64_t k = 0; k < Rows(); ++k)
        for (int64_t r = 0; r < ROWS; ++r)
          weights_.data()[first * Rows() + k * ROWS + r] =
              pairs_ ? Pair(Vector{coefficient(2 * k, first + r)}, Vector{coefficient(2 * k + 1, first + r)})[0]
                     : coefficient(k, first + r);
    if (bias != nullptr) std::copy_n(bias, outputs, bias_.data());
  }

  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }

  // A bias as `Apply` takes it.
  Floats Biases(const float* bias) const {
    Floats padded(Padded(outputs_));
    std::copy_n(bias, outputs_, padded.data());
    return padded;
  }

  // x [inputs, TILE] to y [outputs, TILE], with another bias than the layer's if one is given; of pairs, x is rounded in its place.
  void Apply(float* x, float* y, const float* other_bias) const {
    const float* bias = other_bias != nullptr ? other_bias : bias_.data();
    if (pairs_) {
      for (int64_t k = 0; k < Rows(); ++k)
        for (int64_t i = 0; i < TILE; i += LANES) {
          Vector second = 2 * k + 1 < inputs_ ? Load(x + (2 * k + 1) * TILE + i) : Vector{};
          Store(x + k * TILE + i, Pair(Load(x + 2 * k * TILE + i), second));
        }
      Multiply<true>(x, y, bias);
    } else {
      Multiply<false>(x, y, bias);
    }
  }

 private:
  static int64_t Padded(int64_t outputs) { return (outputs + ROWS - 1) / ROWS * ROWS; }
  int64_t Rows() const { return pairs_ ? (inputs_ + 1) / 2 : inputs_; }

  template <bool PAIRS>
  void Multiply(const float* x, float* y, const float* bias) const {
    int64_t r = 0;
    for (; r + ROWS <= outputs_; r += ROWS)
      MultiplyRows<ROWS, PAIRS>(weights_.data() + r * Rows(), bias + r, x, y + r * TILE, Rows(), relu_);
    if (r < outputs_)
      MultiplyLastRows<ROWS, PAIRS>(outputs_ - r, weights_.data() + r * Rows(), bias + r, x, y + r * TILE, Rows(), relu_);
  }

  int64_t inputs_, outputs_;
  bool relu_, pairs_;
  Floats weights_;  // ROWS channels -> [rows, ROWS]
  Floats bias_;
};
