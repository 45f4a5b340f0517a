// The direction of all tensors, of what the network gives and of a nominal step, as one XLA custom call: what both are normalised by is
// summed on the way.
//
//     s = f0 + b n exp(f1) / rms(n),        d = c s / rms(s),        0 where n is zero all over the tensor

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parts.h"
#include "tile.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t SPAN = 1 << 14;  // weights that are one thread's
using Bits = uint32_t __attribute__((vector_size(LANES * sizeof(uint32_t))));

// exp of what lies within [-8, 4], where it is cut, to a unit in the last place: 2^k times a polynomial of what is left.
inline Vector Exp(Vector x) {
  x = x < -8.0f ? -8.0f + Vector{} : x > 4.0f ? 4.0f + Vector{} : x;
  const Vector shifted = x * 1.44269504f + 12582912.0f, k = shifted - 12582912.0f;  // 1.5 2^23: the sum is rounded to an integer
  const Vector r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  Vector y = r * (1.0f / 5040) + 1.0f / 720;
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = y * r + coefficient;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - 0x4B400000u + 127u) << 23;
  Vector power;
  std::memcpy(&power, &bits, sizeof(power));
  return y * power;
}

// What has a root mean square of its own: a tensor, or one of the matrices in it.
struct Group {
  const float *f, *scale, *nominal;  // scale: null unless the network scales
  float *out, weight, size;          // size: the root mean square that the direction is to have
  int64_t count, first;              // first: of its pieces
  int64_t tensor;                    // of whose groups it is
  float factor;                      // 1 / root mean square of n, then what the direction is multiplied with
};

struct Piece {
  int64_t group, begin, count;
  double total;
  bool any;
};

// A part of a vector at the end of a piece is filled with zeros.
template <typename Visit>
void ForVectors(int64_t begin, int64_t count, const Visit& visit) {
  int64_t i = begin;
  for (; i + LANES <= begin + count; i += LANES) visit(i, static_cast<int64_t>(LANES));
  if (i < begin + count) visit(i, begin + count - i);
}

inline Vector Part(const float* from, int64_t count) { return count == LANES ? Load(from) : LoadFirst(from, count); }

inline void Put(float* to, Vector v, int64_t count) {
  if (count == LANES)
    Store(to, v);
  else
    StoreFirst(to, v, count);
}

void SumNominal(const Group& group, Piece& piece) {
  Vector sums{};
  bool any = false;
  ForVectors(piece.begin, piece.count, [&](int64_t i, int64_t count) {
    const Vector n = Part(group.nominal + i, count);
    sums += n * n;
  });
  for (int64_t i = piece.begin; i < piece.begin + piece.count && !any; ++i) any = group.nominal[i] != 0;
  piece.total = Total(sums);
  piece.any = any;
}

template <bool SCALED>
void Combine(const Group& group, Piece& piece) {
  Vector sums{};
  const float weight = group.weight * group.factor;
  ForVectors(piece.begin, piece.count, [&](int64_t i, int64_t count) {
    Vector n = weight * Part(group.nominal + i, count);
    if constexpr (SCALED) n *= Exp(Part(group.scale + i, count));
    const Vector s = Part(group.f + i, count) + n;
    sums += s * s;
    Put(group.out + i, s, count);
  });
  piece.total = Total(sums);
}

void Finish(const Group& group, bool moves, const Piece& piece) {
  const float factor = group.factor;
  ForVectors(piece.begin, piece.count, [&](int64_t i, int64_t count) {
    Put(group.out + i, moves ? factor * Part(group.out + i, count) : Vector{}, count);
  });
}

// The factors of groups, of the totals of their pieces, which are added in their order.
template <typename Factor>
void Gather(std::vector<Group>& groups, const std::vector<Piece>& pieces, const Factor& factor) {
  for (Group& group : groups) {
    double total = 0;
    for (int64_t p = group.first, done = 0; done < group.count; done += pieces[p++].count) total += pieces[p].total;
    group.factor = factor(group, static_cast<float>(total / static_cast<double>(group.count)));
  }
}

// args: b and c [batch, 2]; of each tensor what the network gives, [batch, outputs, ...], and the nominal step, [batch, ...]; rets: directions.
// `matrices`: how many groups a tensor has, one behind the other; `sizes`: root mean squares of directions, negative: that times c.
// `eps` is added to mean squares. At most so many `threads` work.
ffi::Error DirectionImpl(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t threads, int64_t outputs,
                         ffi::Span<const int64_t> matrices, ffi::Span<const float> sizes, float eps) {
  ffi::AnyBuffer given = *args.get<ffi::AnyBuffer>(0);
  const float* scalars = reinterpret_cast<const float*>(given.untyped_data());
  const int64_t batch = given.element_count() / 2, tensors = matrices.size();
  std::vector<Group> groups;
  std::vector<Piece> pieces;
  for (int64_t t = 0; t < tensors; ++t) {
    ffi::AnyBuffer step = *args.get<ffi::AnyBuffer>(2 + 2 * t);
    const float* f = reinterpret_cast<const float*>((*args.get<ffi::AnyBuffer>(1 + 2 * t)).untyped_data());
    const float* n = reinterpret_cast<const float*>(step.untyped_data());
    float* out = reinterpret_cast<float*>((*rets.get<ffi::AnyBuffer>(t))->untyped_data());
    const int64_t size = static_cast<int64_t>(step.element_count()) / batch, each = size / matrices[t];
    for (int64_t b = 0; b < batch; ++b) {
      const float scale = sizes[t] < 0 ? -sizes[t] * scalars[2 * b + 1] : sizes[t];
      const float* own = f + b * outputs * size;
      for (int64_t at = 0; at < size; at += each) {
        groups.push_back({own + at, outputs > 1 ? own + size + at : nullptr, n + b * size + at, out + b * size + at, scalars[2 * b], scale,
                          each, static_cast<int64_t>(pieces.size()), t * batch + b, 0.0f});
        for (int64_t begin = 0; begin < each; begin += SPAN)
          pieces.push_back({static_cast<int64_t>(groups.size()) - 1, begin, std::min(SPAN, each - begin), 0.0, false});
      }
    }
  }
  int64_t work = 0;
  for (const Piece& piece : pieces) work += piece.count;
  const int64_t parts = pieces.size(), most = std::min(threads, work / SPAN + 1);
  ForParts(pool, most, parts, [&](int64_t p) { SumNominal(groups[pieces[p].group], pieces[p]); });
  Gather(groups, pieces, [&](const Group&, float mean) { return 1 / std::sqrt(mean + eps); });
  std::vector<char> moves(tensors * batch, false);
  for (const Piece& piece : pieces)
    if (piece.any) moves[groups[piece.group].tensor] = true;
  ForParts(pool, most, parts, [&](int64_t p) {
    const Group& group = groups[pieces[p].group];
    outputs > 1 ? Combine<true>(group, pieces[p]) : Combine<false>(group, pieces[p]);
  });
  Gather(groups, pieces, [&](const Group& group, float mean) { return group.size / std::sqrt(mean + eps); });
  ForParts(pool, most, parts, [&](int64_t p) {
    const Group& group = groups[pieces[p].group];
    Finish(group, moves[group.tensor], pieces[p]);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(LoptDirection, DirectionImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("outputs")
                                  .Attr<ffi::Span<const int64_t>>("matrices")
                                  .Attr<ffi::Span<const float>>("sizes")
                                  .Attr<float>("eps"));
