// The running softmax of attention: turns the scores of a tile into weights, in powers of two.
//
// Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; scores times
// log2(e), which saves a multiplication per exponential, as in Dao 2023, "FlashAttention-2".
#pragma once

#include <cmath>

#include "vec.h"

namespace {

constexpr float kLog2E = 1.44269504088896341f;

// State of one query row after the tiles so far.
struct RowState {
  float maximum;  // of its scaled scores; -inf before the first
  float* totals;  // [kLanes] partial sums of 2^(score - maximum)
};

// Turns scores[width] (whole vectors) into weights 2^(score * scale - maximum). If kAll is not set,
// keys outside [begin, end), which is not empty, weigh 0. The scores are scaled in place so that
// they are rounded like the maximum: if scaling were fused into the subtraction, a score of 1e9
// would exceed the maximum by half of its last digit, and 2 to the power of that is infinite.
// Returns the factor for the sums of earlier weights and values.
template <bool kAll, class Element>
inline float weigh(float* scores, Element* weights, int begin, int end, int width, float scale,
                   RowState& state) {
  auto visible = [&](int i) {
    vi key = lane_index() + i;
    return (key >= begin) & (key < end);
  };
  vf highest = splat(-INFINITY);
  for (int i = 0; i < width; i += kLanes) {
    vf score = load(scores + i) * scale;
    store(scores + i, score);
    if (!kAll) score = visible(i) ? score : splat(-INFINITY);
    highest = max(highest, score);
  }
  float before = state.maximum, now = reduce_max(highest), after = before > now ? before : now;
  float keep = before == after ? 1.0f : exp2_of_negative(splat(before - after))[0];
  vf total = load(state.totals) * keep;
  for (int i = 0; i < width; i += kLanes) {
    vf weight = exp2_of_negative(load(scores + i) - after);
    if (!kAll) weight = visible(i) ? weight : vf{};
    store(weights + i, weight);
    total += weight;
  }
  store(state.totals, total);
  state.maximum = after;
  return keep;
}

}  // namespace
