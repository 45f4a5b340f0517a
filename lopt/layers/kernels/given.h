// Channels that are given as arrays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "channels.h"

class GivenChannels : public Channels {
 public:
  // rows: of every channel its values at `weights` weights.
  GivenChannels(int64_t weights, std::vector<const float*> rows, std::vector<Scale> declared)
      : weights_(weights), rows_(std::move(rows)), declared_(std::move(declared)), scales_(rows_.size()) {}

  int64_t count() const override { return rows_.size(); }

  void Fill(int64_t n, int64_t size, float* x, float*) const override {
    for (int64_t c = 0; c < count(); ++c)
      for (int64_t i = 0; i < size; ++i) x[c * TILE + i] = Clip(rows_[c][n + i], declared_[c].clip) * scales_[c];
  }

  // Finds what a channel is multiplied with: first of all, for every channel.
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
    for (int64_t start = 0; start < weights_; start += RUN) {
      int64_t end = std::min(start + RUN, weights_), n = start;
      float lanes[4 * LANES] = {};
      for (; n + 4 * LANES <= end; n += 4 * LANES)
        for (int i = 0; i < 4 * LANES; ++i) lanes[i] += Clip(row[n + i], clip) * Clip(row[n + i], clip);
      for (; n < end; ++n) lanes[0] += Clip(row[n], clip) * Clip(row[n], clip);
      for (float lane : lanes) total += lane;
    }
    scales_[channel] = declared.Factor(total / static_cast<double>(weights_));
  }

 private:
  int64_t weights_;
  std::vector<const float*> rows_;
  std::vector<Scale> declared_;
  std::vector<float> scales_;
};
