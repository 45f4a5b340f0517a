// What a step keeps of gradients and how its channels are made of it: `lopt.layers.kernels.program`.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "channels.h"

enum class Rule : int64_t { AVERAGE, SUM, AVERAGE_OF_SQUARES, FACTORED };

// What is kept of past gradients.
struct Accumulator {
  Rule rule;
  float decay, rest;   // rest: 1 - decay
  float correction;    // 1 / (1 - decay^t): by which an average that began at zero is too small
};

enum class Source : int64_t { VALUE, GRADIENT, ONE, KEPT, ROWS, COLUMNS, ROOT_OF_ROWS, ROOT_OF_COLUMNS };

// A channel: its source, over the root of an average of squares; those of a FACTORED are `rows` and `columns`.
struct Form {
  Source source;
  int64_t kept, root;  // the accumulators of both; root < 0: it is not divided
  bool corrected;      // averages are
  float eps;           // added under the root; of a FACTORED only where it is no product of rows and columns
  Scale scale;

  bool is_side() const { return source >= Source::ROWS; }
  bool is_root_of_side() const { return source >= Source::ROOT_OF_ROWS; }
};

struct Program {
  std::vector<Accumulator> kept;
  std::vector<Form> forms;

  float Correction(const Form& form, int64_t kept) const { return form.corrected ? this->kept[kept].correction : 1.0f; }
};

constexpr float FLOOR = 1e-9f;  // of what is under the root of a FACTORED
constexpr float LEAST = 1e-30f;  // added to its squares

inline float InverseRoot(float x) { return 1.0f / std::sqrt(x); }
inline float InverseFlooredRoot(float x) { return InverseRoot(x < FLOOR ? FLOOR : x); }  // NaN stays NaN
