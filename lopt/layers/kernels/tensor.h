// One tensor of a digest: what its channels are divided by, how it is cut into parts, and what a part leaves behind.
//
// It is cut by its shape alone, and what is summed over parts is added in their order: nothing depends on threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "dense.h"
#include "sums.h"
#include "tile.h"

constexpr int64_t PART = 1024;      // weights that are worth another thread
constexpr int64_t MOST_PARTS = 16;  // each has sums of its own

inline float Clip(float x, float bound) { return x < -bound ? -bound : x > bound ? bound : x; }  // NaN stays NaN

// How a channel is clipped and what it is divided by: `lopt.layers.digest.Channel`.
struct Scale {
  float clip, inside, outside;
  bool divided;
};

class Tensor {
 public:
  // rows: of every channel its values; `last` gives the product [K, weights] of the last layer's features; bias: of the first layer.
  Tensor(std::vector<int64_t> shape, std::vector<const float*> rows, std::vector<Scale> declared, Dense last, Floats bias,
         float* product)
      : shape_(std::move(shape)), rows_(std::move(rows)), declared_(std::move(declared)), scales_(rows_.size()),
        last_(std::move(last)), bias_(std::move(bias)), product_(product) {
    for (size_t i = 0; i < shape_.size(); ++i) {
      count_ *= shape_[i];
      if (shape_[i] > shape_[axis_]) axis_ = i;
    }
    for (size_t i = axis_ + 1; i < shape_.size(); ++i) behind_ *= shape_[i];
    length_ = shape_.empty() ? 1 : shape_[axis_];
    int64_t run = length_ * behind_;  // weights in a row, which parts cut: each is to have some tiles of them
    parts_ = std::max<int64_t>(std::min({MOST_PARTS, length_, count_ / PART, run / (4 * TILE)}), 1);
  }

  // The features' sums over an axis are to be left in totals [C, the other axes].
  void SumOver(int64_t axis, float* totals) {
    int64_t behind = 1, others = count_ / shape_[axis];
    for (size_t i = axis + 1; i < shape_.size(); ++i) behind *= shape_[i];
    sums_.push_back({shape_[axis], behind, others, totals, Floats(last_.inputs() * LANES)});
    std::fill_n(totals, last_.inputs() * others, 0.0f);
    if (static_cast<size_t>(axis) != axis_ || parts_ == 1) return;
    over_parts_ = static_cast<int64_t>(sums_.size()) - 1;  // every part has its own
    for (int64_t part = 0; part < parts_; ++part) own_.emplace_back(last_.inputs() * others);
  }

  int64_t count() const { return count_; }
  int64_t parts() const { return parts_; }
  int64_t channels() const { return rows_.size(); }
  const Dense& last() const { return last_; }

  // Finds 1 / (sqrt(mean square + inside) + outside) of a channel, clipped: `lopt.layers.digest.channel_scale`.
  void FindScale(int64_t channel) {
    const Scale& declared = declared_[channel];
    const float clip = declared.clip;
    if (!declared.divided) {
      scales_[channel] = 1.0f;
      return;
    }
    constexpr int64_t RUN = 4096;  // summed in float32, the runs in float64
    const float* row = rows_[channel];
    double total = 0;
    for (int64_t start = 0; start < count_; start += RUN) {
      int64_t end = std::min(start + RUN, count_), n = start;
      float lanes[4 * LANES] = {};
      for (; n + 4 * LANES <= end; n += 4 * LANES)
        for (int i = 0; i < 4 * LANES; ++i) lanes[i] += Clip(row[n + i], clip) * Clip(row[n + i], clip);
      for (; n < end; ++n) lanes[0] += Clip(row[n], clip) * Clip(row[n], clip);
      for (float lane : lanes) total += lane;
    }
    float mean = static_cast<float>(total / static_cast<double>(count_));
    scales_[channel] = 1.0f / (std::sqrt(mean + declared.inside) + declared.outside);
  }

  // Takes the weights of a part, a run of indices of the longest axis, through the layers, which are at most `width` wide.
  void Digest(int64_t part, const std::vector<Dense>& layers, int64_t width) {
    Floats buffers(2 * width * TILE);
    std::vector<Sums> sums = sums_;
    if (over_parts_ >= 0) sums[over_parts_].totals = own_[part].data();
    int64_t first = length_ * part / parts_, last = length_ * (part + 1) / parts_;
    for (int64_t before = 0; before < count_ / (length_ * behind_); ++before) {
      int64_t end = (before * length_ + last) * behind_;
      for (int64_t n = (before * length_ + first) * behind_; n < end; n += TILE) {
        int64_t size = std::min(TILE, end - n);
        float *x = buffers.data(), *y = x + width * TILE;
        for (int64_t c = 0; c < channels(); ++c)
          for (int64_t i = 0; i < size; ++i) x[c * TILE + i] = Clip(rows_[c][n + i], declared_[c].clip) * scales_[c];
        for (size_t l = 0; l < layers.size(); ++l) {
          layers[l].Apply(x, y, l == 0 ? bias_.data() : nullptr);
          std::swap(x, y);
        }
        for (Sums& sum : sums) sum.Add(x, last_.inputs(), n, size, n + size == end);
        last_.Apply(x, y, nullptr);
        for (int64_t c = 0; c < last_.outputs(); ++c) std::copy_n(y + c * TILE, size, product_ + c * count_ + n);
      }
    }
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
  std::vector<const float*> rows_;
  std::vector<Scale> declared_;
  std::vector<float> scales_;
  Dense last_;
  Floats bias_;
  float* product_;
  size_t axis_ = 0;                                       // the longest
  int64_t count_ = 1, length_ = 1, behind_ = 1, parts_ = 1;  // weights; indices of that axis; weights between two
  std::vector<Sums> sums_;
  int64_t over_parts_ = -1;  // the one over the longest axis
  std::vector<Floats> own_;
};
