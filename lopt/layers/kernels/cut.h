// How a tensor is cut into parts, which threads take, and these into tiles: by its shape alone, so that nothing depends on threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tile.h"

constexpr int64_t PART = 1024;      // weights that are worth another thread
constexpr int64_t MOST_PARTS = 16;  // each has sums of its own

class Cut {
 public:
  explicit Cut(const std::vector<int64_t>& shape) {
    for (size_t i = 0; i < shape.size(); ++i) {
      count_ *= shape[i];
      if (shape[i] > shape[axis_]) axis_ = i;
    }
    for (size_t i = axis_ + 1; i < shape.size(); ++i) behind_ *= shape[i];
    length_ = shape.empty() ? 1 : shape[axis_];
    int64_t run = length_ * behind_;  // weights in a row, which parts cut: each is to have some tiles of them
    parts_ = std::max<int64_t>(std::min({MOST_PARTS, length_, count_ / PART, run / (4 * TILE)}), 1);
  }

  size_t axis() const { return axis_; }
  int64_t count() const { return count_; }
  int64_t parts() const { return parts_; }

  // Calls work(n, size, last) for the tiles of a part, a run of indices of the longest axis: weights n, n + 1, ..., n + size - 1; `last`:
  // those that follow are not their neighbours.
  template <typename Work>
  void ForTiles(int64_t part, const Work& work) const {
    int64_t first = length_ * part / parts_, last = length_ * (part + 1) / parts_;
    for (int64_t before = 0; before < count_ / (length_ * behind_); ++before) {
      int64_t end = (before * length_ + last) * behind_;
      for (int64_t n = (before * length_ + first) * behind_; n < end; n += TILE) {
        int64_t size = std::min(TILE, end - n);
        work(n, size, n + size == end);
      }
    }
  }

 private:
  size_t axis_ = 0;                                          // the longest
  int64_t count_ = 1, length_ = 1, behind_ = 1, parts_ = 1;  // weights; indices of that axis; weights between two
};
