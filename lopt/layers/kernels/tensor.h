// One tensor on its way through the layers: a part at a time, and what a part leaves behind, which is added in the order of parts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "channels.h"
#include "cut.h"
#include "dense.h"
#include "sums.h"
#include "tile.h"

class Tensor {
 public:
  // `last` gives the product [K, weights] of the last layer's features; bias: of the first layer.
  Tensor(std::vector<int64_t> shape, Dense last, Floats bias, float* product)
      : shape_(std::move(shape)), cut_(shape_), last_(std::move(last)), bias_(std::move(bias)), product_(product) {}

  // The features' sums over an axis are to be left in totals [C, the other axes].
  void SumOver(int64_t axis, float* totals) {
    int64_t behind = 1, others = cut_.count() / shape_[axis];
    for (size_t i = axis + 1; i < shape_.size(); ++i) behind *= shape_[i];
    sums_.push_back({shape_[axis], behind, others, totals, Floats(last_.inputs() * LANES)});
    std::fill_n(totals, last_.inputs() * others, 0.0f);
    if (static_cast<size_t>(axis) != cut_.axis() || cut_.parts() == 1) return;
    over_parts_ = static_cast<int64_t>(sums_.size()) - 1;  // every part has its own
    for (int64_t part = 0; part < cut_.parts(); ++part) own_.emplace_back(last_.inputs() * others);
  }

  const Cut& cut() const { return cut_; }
  int64_t outputs() const { return last_.outputs(); }

  // Takes the weights of a part through the layers, which are at most `width` wide.
  void Digest(int64_t part, const Channels& channels, const std::vector<Dense>& layers, int64_t width) {
    Floats buffers((2 * width + channels.scratch_rows()) * TILE);
    std::vector<Sums> sums = sums_;
    if (over_parts_ >= 0) sums[over_parts_].totals = own_[part].data();
    cut_.ForTiles(part, [&](int64_t n, int64_t size, bool end) {
      float *x = buffers.data(), *y = x + width * TILE;
      channels.Fill(n, size, x, y + width * TILE);
      for (size_t l = 0; l < layers.size(); ++l) {
        layers[l].Apply(x, y, l == 0 ? bias_.data() : nullptr);
        std::swap(x, y);
      }
      for (Sums& sum : sums) sum.Add(x, last_.inputs(), n, size, end);
      last_.Apply(x, y, nullptr);
      for (int64_t c = 0; c < last_.outputs(); ++c) std::copy_n(y + c * TILE, size, product_ + c * cut_.count() + n);
    });
  }

  // Adds up what the parts have left, once all are done.
  void Finish() {
    if (over_parts_ < 0) return;
    Sums& sum = sums_[over_parts_];
    for (const Floats& part : own_)
      for (int64_t i = 0; i < last_.inputs() * sum.others; ++i) sum.totals[i] += part.data()[i];
  }

 private:
  std::vector<int64_t> shape_;
  Cut cut_;
  Dense last_;
  Floats bias_;
  float* product_;
  std::vector<Sums> sums_;
  int64_t over_parts_ = -1;  // the one over the longest axis
  std::vector<Floats> own_;
};
