// Channels that are computed of weights, gradients and what is kept of past gradients, which moves on by one step.
//
// Three passes, each over all parts: sums of squared gradients over rows and over columns; what is kept, and the mean squares of
// channels; the channels themselves, a tile at a time. What parts leave behind is added in their order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "channels.h"
#include "cut.h"
#include "program.h"
#include "sides.h"
#include "sums.h"
#include "tile.h"

// An accumulator's arrays before and after: [weights], or of a FACTORED rows and columns.
struct Kept {
  const float* before[2];
  float* after[2];
};

// Of a tensor the axes over which rows and columns are averages, the largest and the second largest; for both size 0: there are none, the
// tensor is a vector, which keeps an average for every weight.
struct Axes {
  Axis larger, smaller;
};

class ComputedChannels : public Channels {
 public:
  // Of `matrices` in a row, in none of which a tile begins that ends in the next, each has scales of its own.
  ComputedChannels(const Program& program, const Cut& cut, Axes axes, int64_t matrices, const float* value, const float* gradient,
                   std::vector<Kept> kept)
      : program_(program), cut_(cut), axes_(axes), matrices_(matrices), of_matrix_(cut.count() / matrices), value_(value),
        gradient_(gradient), kept_(std::move(kept)), rows_(program.kept.size(), -1),
        totals_(cut.parts() * matrices * program.forms.size()), factors_(matrices * program.forms.size()) {
    for (size_t k = 0; k < program.kept.size(); ++k) {
      if (IsSided(k)) {
        sided_ = true;
      } else {
        rows_[k] = first_root_++;
      }
    }
    for (size_t c = 0; c < program.forms.size(); ++c) {
      const Form& form = program.forms[c];
      if (IsSpread(form)) continue;
      Product product{ONES, ONES, static_cast<int64_t>(c), 1.0f, form.scale};
      if (form.source == Source::VALUE) product.a = VALUES;
      if (form.source == Source::GRADIENT) product.a = GRADIENTS;
      if (form.source == Source::KEPT || form.is_side()) product.a = rows_[form.kept], product.correction = program.Correction(form, form.kept);
      if (form.root >= 0) product.b = FindRoot({form.root, program.Correction(form, form.root), IsSided(form.root) ? 0.0f : form.eps,
                                                program.kept[form.root].rule == Rule::FACTORED, {Floats(0), Floats(0)}});
      if (form.is_root_of_side()) {  // of a vector
        product.a = ONES, product.b = FindRoot({form.kept, product.correction, form.eps, false, {Floats(0), Floats(0)}});
        product.correction = 1.0f;
      }
      (std::isinf(form.scale.clip) ? plain_ : clipped_).push_back(product);
    }
    if (sided_)
      for (int64_t part = 0; part < cut_.parts(); ++part)
        squares_.push_back({Floats(cut_.count() / axes_.larger.size), Floats(cut_.count() / axes_.smaller.size)});
  }

  int64_t count() const override { return program_.forms.size(); }
  int64_t scratch_rows() const override { return first_root_ + roots_.size() + 2; }  // one is spare; the last is for what is spread too far
  bool sided() const { return sided_; }

  // First: sums of a part's squared gradients over rows and over columns.
  void SumSquares(int64_t part) {
    Floats tile(TILE);
    cut_.ForTiles(part, [&](int64_t n, int64_t size, bool) {
      float* y = tile.data();
      for (int64_t i = 0; i < size; ++i) y[i] = gradient_[n + i] * gradient_[n + i];
      for (int side = 0; side < 2; ++side) Runs(OfSide(side), n, size).Add(y, squares_[part][side].data());
    });
  }

  // Then: rows and columns move on, and with them what is spread over weights.
  void FinishSides() {
    for (size_t k = 0; k < kept_.size(); ++k)
      if (program_.kept[k].rule == Rule::FACTORED && !IsSided(k)) *kept_[k].after[1] = *kept_[k].before[1];  // vectors have no columns
    if (!sided_) return;
    for (size_t part = 1; part < squares_.size(); ++part)
      for (int side = 0; side < 2; ++side) {
        float* total = squares_[0][side].data();
        const float* more = squares_[part][side].data();
        for (int64_t i = 0; i < Others(side); ++i) total[i] += more[i];
      }
    for (size_t k = 0; k < kept_.size(); ++k) {
      if (!IsSided(k)) continue;
      const Accumulator& how = program_.kept[k];
      for (int side = 0; side < 2; ++side) {
        const float* total = squares_[0][side].data();
        const float size = static_cast<float>(OfSide(side).size);
        for (int64_t i = 0; i < Others(side); ++i)
          kept_[k].after[side][i] = how.decay * kept_[k].before[side][i] + how.rest * (total[i] / size + LEAST);
      }
    }
    for (Root& root : roots_)
      if (IsSided(root.kept)) FindFactors(root);
    for (size_t c = 0; c < program_.forms.size(); ++c)
      if (IsSpread(program_.forms[c])) spread_.push_back(Side(c));
  }

  // Second: what is kept of a part's weights moves on, and the squares of their channels are summed.
  void Accumulate(int64_t part) {
    Floats scratch(scratch_rows() * TILE), lanes(count() * LANES);
    int64_t tiles = 0, matrix = 0;
    auto flush = [&] {  // summed in float32, the runs in float64
      double* totals = totals_.data() + (part * matrices_ + matrix) * count();
      for (int64_t c = 0; c < count(); ++c) totals[c] += Total(Load(lanes.data() + c * LANES));
      std::fill_n(lanes.data(), count() * LANES, 0.0f);
    };
    cut_.ForTiles(part, [&](int64_t n, int64_t size, bool) {
      float* rows = scratch.data();
      if (n / of_matrix_ != matrix) flush(), matrix = n / of_matrix_;
      Begin(n, size, rows);
      for (size_t k = 0; k < kept_.size(); ++k) {
        if (rows_[k] < 0) continue;
        float* row = rows + rows_[k] * TILE;
        Read(kept_[k].before[0] + n, size, row);
        Advance(program_.kept[k], rows + GRADIENTS * TILE, row);
        Write(row, size, kept_[k].after[0] + n);
      }
      const Runs runs[2] = {RunsOf(0, n, size), RunsOf(1, n, size)};
      ComputeRoots(runs, rows);
      if (size < TILE)  // what lies behind the last weight is not summed
        for (int64_t row = 0; row < first_root_ + static_cast<int64_t>(roots_.size()); ++row)
          std::fill(rows + row * TILE + size, rows + (row + 1) * TILE, 0.0f);
      for (const Product& each : plain_) AddSquares<false>(each, rows, lanes.data());
      for (const Product& each : clipped_) AddSquares<true>(each, rows, lanes.data());
      if (++tiles % 64 == 0) flush();
    });
    flush();
  }

  // Then: what channels are multiplied with.
  void FindScales() {
    for (int64_t matrix = 0; matrix < matrices_; ++matrix)
      for (auto* products : {&plain_, &clipped_})
        for (const Product& each : *products) {
          double total = 0;
          for (int64_t part = 0; part < cut_.parts(); ++part) total += totals_[(part * matrices_ + matrix) * count() + each.channel];
          float factor = each.scale.Factor(total / static_cast<double>(of_matrix_));
          factors_[matrix * count() + each.channel] = products == &plain_ ? factor * each.correction : factor;
        }
  }

  // Third.
  void Fill(int64_t n, int64_t size, float* x, float* rows) const override {
    Begin(n, size, rows);
    for (size_t k = 0; k < kept_.size(); ++k)
      if (rows_[k] >= 0) Read(kept_[k].after[0] + n, size, rows + rows_[k] * TILE);
    const Runs runs[2] = {RunsOf(0, n, size), RunsOf(1, n, size)};
    ComputeRoots(runs, rows);
    const float* factors = factors_.data() + n / of_matrix_ * count();
    for (const Spread& each : spread_) runs[each.side].Spread(each.values.data(), x + each.channel * TILE);  // in the order of channels
    for (const Product& each : plain_)
      for (int i = 0; i < COLUMNS; ++i) Store(x + each.channel * TILE + i * LANES, Times(factors[each.channel], each, rows, i));
    for (const Product& each : clipped_)
      for (int i = 0; i < COLUMNS; ++i) Store(x + each.channel * TILE + i * LANES, Value<true>(each, rows, i) * factors[each.channel]);
  }

 private:
  // Rows of a tile: ones, weights, gradients; then what is kept for every weight, roots, and a spare one.
  enum : int64_t { ONES, VALUES, GRADIENTS, FIRST_KEPT };

  // A channel: the product of two rows.
  struct Product {
    int64_t a, b, channel;
    float correction;
    Scale scale;
  };

  // A channel that is spread over the tensor from one side, clipped and scaled.
  struct Spread {
    int64_t channel;
    int side;
    Floats values;
  };

  // 1 / root of an average of squares, as a row; of a FACTORED tensor the product of what is spread from both sides.
  struct Root {
    int64_t kept;
    float correction, eps;
    bool floored;
    Floats sides[2];
  };

  bool IsSided(size_t k) const { return program_.kept[k].rule == Rule::FACTORED && axes_.larger.size > 0; }
  bool IsSpread(const Form& form) const { return form.is_side() && IsSided(form.kept); }
  Runs RunsOf(int side, int64_t n, int64_t size) const { return Runs(OfSide(side), n, sided_ ? size : 0); }
  const Axis& OfSide(int side) const { return side == 0 ? axes_.larger : axes_.smaller; }
  int64_t Others(int side) const { return cut_.count() / OfSide(side).size; }

  // The row of a root, which channels share.
  int64_t FindRoot(Root root) {
    for (size_t i = 0; i < roots_.size(); ++i)
      if (roots_[i].kept == root.kept && roots_[i].correction == root.correction && roots_[i].eps == root.eps &&
          roots_[i].floored == root.floored)
        return first_root_ + i;
    roots_.push_back(std::move(root));
    return first_root_ + roots_.size() - 1;
  }

  // What spreads to 1 / root of rows times columns over the mean of rows.
  void FindFactors(Root& root) {
    int64_t rows = Others(0), columns = Others(1);
    root.sides[0] = Floats(rows + LANES), root.sides[1] = Floats(columns + LANES);
    float *of_rows = root.sides[0].data(), *of_columns = root.sides[1].data();
    const Kept& kept = kept_[root.kept];
    for (int64_t i = 0; i < rows; ++i) of_rows[i] = kept.after[0][i] * root.correction;
    // The second largest axis among rows, which lack the largest.
    const int64_t size = axes_.smaller.size;
    const int64_t post = axes_.smaller.post > axes_.larger.post ? axes_.smaller.post / axes_.larger.size : axes_.smaller.post;
    std::vector<float> means(post);
    for (float* block = of_rows; block < of_rows + rows; block += size * post) {
      std::fill(means.begin(), means.end(), 0.0f);
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < post; ++j) means[j] += block[i * post + j];
      for (float& mean : means) mean = mean / static_cast<float>(size) + 1e-9f;
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < post; ++j) block[i * post + j] /= means[j];
    }
    for (int64_t i = 0; i < rows; ++i) of_rows[i] = InverseFlooredRoot(of_rows[i]);
    for (int64_t i = 0; i < columns; ++i) of_columns[i] = InverseFlooredRoot(kept.after[1][i] * root.correction);
  }

  // A channel of rows or columns, finished before it is spread: its mean square over the side is that over the tensor, or its matrix.
  Spread Side(int64_t c) const {
    const Form& form = program_.forms[c];
    const int side = form.source == Source::COLUMNS || form.source == Source::ROOT_OF_COLUMNS;
    const float correction = program_.Correction(form, form.kept), *from = kept_[form.kept].after[side];
    const int64_t others = Others(side);
    Spread found{c, side, Floats(others + LANES)};
    float* values = found.values.data();
    for (int64_t i = 0; i < others; ++i) values[i] = from[i] * correction;
    if (form.is_root_of_side())
      for (int64_t i = 0; i < others; ++i) values[i] = InverseRoot(values[i] + form.eps);
    for (int64_t i = 0; i < others; ++i) values[i] = Clip(values[i], form.scale.clip);
    const int64_t each = others / matrices_;
    for (float* of_matrix = values; of_matrix < values + others; of_matrix += each) {
      const float scale = form.scale.Factor(SquareSum(of_matrix, each) / static_cast<double>(each));
      for (int64_t i = 0; i < each; ++i) of_matrix[i] *= scale;
    }
    return found;
  }

  // Ones, weights and gradients of a tile.
  void Begin(int64_t n, int64_t size, float* rows) const {
    std::fill_n(rows + ONES * TILE, TILE, 1.0f);
    Read(value_ + n, size, rows + VALUES * TILE);
    Read(gradient_ + n, size, rows + GRADIENTS * TILE);
  }

  // `size` values to a row of a tile, zeros behind them; and back.
  static void Read(const float* from, int64_t size, float* row) {
    if (size == TILE) {
      for (int i = 0; i < COLUMNS; ++i) Store(row + i * LANES, Load(from + i * LANES));
    } else {
      std::fill(std::copy_n(from, size, row), row + TILE, 0.0f);
    }
  }

  static void Write(const float* row, int64_t size, float* to) {
    if (size == TILE) {
      for (int i = 0; i < COLUMNS; ++i) Store(to + i * LANES, Load(row + i * LANES));
    } else {
      std::copy_n(row, size, to);
    }
  }

  // A row of an accumulator, one step on.
  static void Advance(const Accumulator& how, const float* gradient, float* row) {
    const float decay = how.decay, rest = how.rest;
    switch (how.rule) {
      case Rule::AVERAGE:
        for (int64_t i = 0; i < TILE; ++i) row[i] = decay * row[i] + rest * gradient[i];
        break;
      case Rule::SUM:
        for (int64_t i = 0; i < TILE; ++i) row[i] = decay * row[i] + gradient[i];
        break;
      case Rule::AVERAGE_OF_SQUARES:
        for (int64_t i = 0; i < TILE; ++i) row[i] = decay * row[i] + rest * (gradient[i] * gradient[i]);
        break;
      case Rule::FACTORED:
        for (int64_t i = 0; i < TILE; ++i) row[i] = decay * row[i] + rest * (gradient[i] * gradient[i] + LEAST);
        break;
    }
  }

  // Rows of the roots, from those before them.
  void ComputeRoots(const Runs (&runs)[2], float* rows) const {
    float *y = rows + first_root_ * TILE, *spare = y + roots_.size() * TILE;
    for (const Root& root : roots_) {
      if (IsSided(root.kept)) {
        runs[0].Spread(root.sides[0].data(), y);
        runs[1].Spread(root.sides[1].data(), spare);
        for (int64_t i = 0; i < TILE; ++i) y[i] *= spare[i];
      } else {
        const float *v = rows + rows_[root.kept] * TILE, floor = root.floored ? FLOOR : -INFINITY;
        for (int64_t i = 0; i < TILE; ++i) {
          float x = v[i] * root.correction + root.eps;
          y[i] = InverseRoot(x < floor ? floor : x);
        }
      }
      y += TILE;
    }
  }

  static Vector Times(float factor, const Product& each, const float* rows, int i) {
    return Load(rows + each.a * TILE + i * LANES) * factor * Load(rows + each.b * TILE + i * LANES);
  }

  template <bool CLIPPED>
  static Vector Value(const Product& each, const float* rows, int i) {
    Vector v = Times(each.correction, each, rows, i);
    if constexpr (CLIPPED) {
      const float clip = each.scale.clip;
      v = v < -clip ? -clip + Vector{} : v > clip ? clip + Vector{} : v;
    }
    return v;
  }

  template <bool CLIPPED>
  static void AddSquares(const Product& each, const float* rows, float* lanes) {
    Vector sum = Load(lanes + each.channel * LANES);
    for (int i = 0; i < COLUMNS; ++i) {
      Vector v = Value<CLIPPED>(each, rows, i);
      sum += v * v;
    }
    Store(lanes + each.channel * LANES, sum);
  }

  const Program& program_;
  const Cut cut_;
  const Axes axes_;
  const int64_t matrices_, of_matrix_;  // how many have scales of their own; weights of each
  const float *value_, *gradient_;
  std::vector<Kept> kept_;
  std::vector<int64_t> rows_;  // of accumulators; -1: it has sides
  int64_t first_root_ = FIRST_KEPT;
  std::vector<Root> roots_;
  std::vector<Product> plain_, clipped_;
  std::vector<double> totals_;  // [parts, matrices, channels]
  std::vector<float> factors_;  // [matrices, channels]: what they are multiplied with in the end; what is not clipped, with the correction
  bool sided_ = false;
  std::vector<std::vector<Floats>> squares_;  // of each part over both axes
  std::vector<Spread> spread_;
};
