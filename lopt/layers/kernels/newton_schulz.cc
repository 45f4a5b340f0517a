// Newton-Schulz of small matrices, and inverse roots by it, as XLA custom calls: all products of a matrix are made while it stays in the
// cache, and of those that are symmetric only a half.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

#include "parts.h"
#include "tile.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int HEIGHT = 6, WIDTH = 2;      // 12 sums, 2 vectors and a coefficient in 16 registers
constexpr int64_t STRIP = WIDTH * LANES;  // columns that are made together
constexpr int64_t THREAD_WORK = 1 << 20;  // multiplications that are worth another thread

// A matrix whose rows begin with a cache line; what lies behind its columns is zero. A row has an odd number of lines: a strip of many
// rows would otherwise fall into few sets of the cache.
struct Matrix {
  Matrix(int64_t rows, int64_t columns)
      : rows(rows), width((columns + LANES - 1) / LANES * LANES), stride(((columns + 15) / 16 | 1) * 16) {}
  int64_t size() const { return rows * stride; }
  float* Row(int64_t i) { return values + i * stride; }
  const float* Row(int64_t i) const { return values + i * stride; }

  int64_t rows, width, stride;
  float* values = nullptr;
};

// Gives matrices their memory, zeros, which a thread keeps for the next ones.
void Place(std::initializer_list<Matrix*> matrices) {
  static thread_local Floats memory(0);
  static thread_local int64_t kept = 0;
  int64_t size = 0;
  for (const Matrix* matrix : matrices) size += matrix->size();
  if (size > kept) memory = Floats(kept = size);
  std::fill_n(memory.data(), size, 0.0f);
  float* next = memory.data();
  for (Matrix* matrix : matrices) {
    matrix->values = next;
    next += matrix->size();
  }
}

// out[i, j] = plain addend[i, j] + factor sum over k of a[i, k] b[k, j], for COUNT rows from i on and VECTORS of columns from j on; with
// TURNED a[k, i] instead.
template <bool TURNED, int COUNT, int VECTORS>
void MultiplyBlock(const Matrix& a, const Matrix& b, float plain, const Matrix& addend, float factor, Matrix& out, int64_t i,
                   int64_t j) {
  Vector sums[COUNT][VECTORS] = {};
  const float *left = TURNED ? a.Row(0) + i : a.Row(i), *right = b.Row(0) + j;
  const int64_t next_row = TURNED ? 1 : a.stride, next = TURNED ? a.stride : 1;
  for (int64_t k = 0; k < b.rows; ++k, left += next, right += b.stride) {
    Vector features[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) features[v] = Load(right + v * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sums[r][v] += left[r * next_row] * features[v];
  }
#pragma GCC unroll 6
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      int64_t column = j + v * LANES;
      Store(out.Row(i + r) + column, plain * Load(addend.Row(i + r) + column) + factor * sums[r][v]);
    }
}

template <bool TURNED, int COUNT>
void MultiplyRows(int64_t count, const Matrix& a, const Matrix& b, float plain, const Matrix& addend, float factor, Matrix& out,
                  int64_t i, int64_t first) {
  if (count == COUNT) {
    int64_t j = first;
    for (; j + STRIP <= out.width; j += STRIP) MultiplyBlock<TURNED, COUNT, WIDTH>(a, b, plain, addend, factor, out, i, j);
    for (; j < out.width; j += LANES) MultiplyBlock<TURNED, COUNT, 1>(a, b, plain, addend, factor, out, i, j);
  } else if constexpr (COUNT > 1) {
    MultiplyRows<TURNED, COUNT - 1>(count, a, b, plain, addend, factor, out, i, first);
  }
}

// out = plain addend + factor a b.
void Multiply(const Matrix& a, const Matrix& b, float plain, const Matrix& addend, float factor, Matrix& out) {
  for (int64_t i = 0; i < out.rows; i += HEIGHT)
    MultiplyRows<false, HEIGHT>(std::min<int64_t>(HEIGHT, out.rows - i), a, b, plain, addend, factor, out, i, 0);
}

// out = plain addend + factor a^T b, which is symmetric: strips below the diagonal are copied from above.
void MultiplySymmetric(const Matrix& a, const Matrix& b, float plain, const Matrix& addend, float factor, Matrix& out) {
  for (int64_t i = 0; i < out.rows; i += HEIGHT)
    MultiplyRows<true, HEIGHT>(std::min<int64_t>(HEIGHT, out.rows - i), a, b, plain, addend, factor, out, i, i / STRIP * STRIP);
  for (int64_t i = STRIP; i < out.rows; ++i)
    for (int64_t j = 0; j < i / STRIP * STRIP; ++j) out.Row(i)[j] = out.Row(j)[i];
}

struct Polynomial {
  float a, b, c, eps;
  int64_t steps;
};

float Norm(const float* from, int64_t count) {
  Vector sums{};
  int64_t n = 0;
  for (; n + LANES <= count; n += LANES) sums += Load(from + n) * Load(from + n);
  Vector rest = LoadFirst(from + n, count - n);
  return std::sqrt(Total(sums + rest * rest));
}

// X <- X / (|X| + eps), then `steps` times X <- a X + X (b A + c A A) with A = X^T X; of a matrix with more columns than rows, its transpose.
void Orthogonalise(const float* from, float* to, int64_t rows, int64_t columns, const Polynomial& polynomial) {
  bool wide = columns > rows;
  int64_t less = std::min(rows, columns), more = std::max(rows, columns);
  int64_t down = wide ? 1 : columns, along = wide ? columns : 1;  // between two entries of a column and of a row, where they come from
  Matrix x(more, less), next(more, less), squares(less, less), factors(less, less);
  Place({&x, &next, &squares, &factors});
  float scale = 1 / (Norm(from, rows * columns) + polynomial.eps);
  for (int64_t i = 0; i < more; ++i)
    for (int64_t j = 0; j < less; ++j) x.Row(i)[j] = from[i * down + j * along] * scale;
  for (int64_t step = 0; step < polynomial.steps; ++step) {
    MultiplySymmetric(x, x, 0, squares, 1, squares);
    MultiplySymmetric(squares, squares, polynomial.b, squares, polynomial.c, factors);
    Multiply(x, factors, polynomial.a, x, 1, next);
    std::swap(x, next);
  }
  for (int64_t i = 0; i < more; ++i)
    for (int64_t j = 0; j < less; ++j) to[i * down + j * along] = x.Row(i)[j];
}

// Of a symmetric A: T begins as A / |A| + damping, Z as one; then `steps` times T <- T P P and Z <- P Z with P = a + b T + c T T. Z is
// what is asked for. All of these commute, so that each product is symmetric.
void InverseRoot(const float* from, float* to, int64_t n, float damping, const Polynomial& polynomial) {
  Matrix t(n, n), z(n, n), factor(n, n), next(n, n);
  Place({&t, &z, &factor, &next});
  // First over the largest entry, as squares of covariances may be less than any float.
  float largest = 0, squares = 0;
  for (int64_t i = 0; i < n * n; ++i) largest = std::abs(from[i]) > largest ? std::abs(from[i]) : largest;
  const float scale = 1 / (largest + polynomial.eps);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) t.Row(i)[j] = from[i * n + j] * scale;
    for (int64_t j = 0; j < n; ++j) squares += t.Row(i)[j] * t.Row(i)[j];
  }
  const float unit = 1 / (std::sqrt(squares) + polynomial.eps);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) t.Row(i)[j] *= unit;
    t.Row(i)[i] += damping;
    z.Row(i)[i] = 1;
  }
  for (int64_t step = 0; step < polynomial.steps; ++step) {
    MultiplySymmetric(t, t, polynomial.b, t, polynomial.c, factor);
    for (int64_t i = 0; i < n; ++i) factor.Row(i)[i] += polynomial.a;
    MultiplySymmetric(factor, z, 0, next, 1, next);
    std::swap(z, next);
    if (step + 1 == polynomial.steps) break;
    MultiplySymmetric(t, factor, 0, next, 1, next);
    MultiplySymmetric(next, factor, 0, t, 1, t);
  }
  for (int64_t i = 0; i < n; ++i) std::copy_n(z.Row(i), n, to + i * n);
}

struct Job {
  const float* from;
  float* to;
  int64_t rows, columns;
};

// Computes every matrix of tensors [..., rows, columns], axes before the last two are a batch. `work_of` says how many multiplications one
// takes; a matrix is one thread's.
template <typename WorkOf, typename Compute>
ffi::Error EachMatrix(ffi::ThreadPool& pool, const ffi::RemainingArgs& args, const ffi::RemainingRets& rets, int64_t threads, WorkOf work_of,
                      Compute compute) {
  std::vector<Job> jobs;
  int64_t work = 0;
  for (size_t t = 0; t < args.size(); ++t) {
    ffi::AnyBuffer tensor = *args.get<ffi::AnyBuffer>(t);
    auto shape = tensor.dimensions();
    int64_t rows = shape[shape.size() - 2], columns = shape[shape.size() - 1], matrices = 1;
    for (size_t axis = 0; axis + 2 < shape.size(); ++axis) matrices *= shape[axis];
    const float* from = reinterpret_cast<const float*>(tensor.untyped_data());
    float* to = reinterpret_cast<float*>((*rets.get<ffi::AnyBuffer>(t))->untyped_data());
    for (int64_t m = 0; m < matrices; ++m, from += rows * columns, to += rows * columns) jobs.push_back({from, to, rows, columns});
    work += matrices * work_of(rows, columns);
  }
  ForParts(pool, std::min(threads, work / THREAD_WORK + 1), jobs.size(), [&](int64_t i) { compute(jobs[i]); });
  return ffi::Error::Success();
}

// args: tensors [..., rows, columns] of float32; rets: the same, orthogonalised. `coefficients`: a, b, c and eps. At most so many `threads`
// work.
ffi::Error NewtonSchulzImpl(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t threads, int64_t steps,
                            ffi::Span<const float> coefficients) {
  const float* given = coefficients.begin();
  Polynomial polynomial{given[0], given[1], given[2], given[3], steps};
  auto work_of = [&](int64_t rows, int64_t columns) {
    int64_t less = std::min(rows, columns);
    return steps * less * (rows * columns * 3 / 2 + less * less / 2);
  };
  return EachMatrix(pool, args, rets, threads, work_of,
                    [&](const Job& job) { Orthogonalise(job.from, job.to, job.rows, job.columns, polynomial); });
}

// The same of symmetric matrices [..., n, n]: rets are their inverse roots, up to a factor. `coefficients`: a, b, c, eps and the damping.
ffi::Error InverseRootsImpl(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t threads, int64_t steps,
                            ffi::Span<const float> coefficients) {
  const float* given = coefficients.begin();
  Polynomial polynomial{given[0], given[1], given[2], given[3], steps};
  auto work_of = [&](int64_t n, int64_t) { return 2 * steps * n * n * n; };
  return EachMatrix(pool, args, rets, threads, work_of,
                    [&](const Job& job) { InverseRoot(job.from, job.to, job.rows, given[4], polynomial); });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LoptNewtonSchulz, NewtonSchulzImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("steps")
                                  .Attr<ffi::Span<const float>>("coefficients"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(LoptInverseRoots, InverseRootsImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("steps")
                                  .Attr<ffi::Span<const float>>("coefficients"));
