// Samples one token per row: temperature, min-p, top-k, top-p, then the largest logit plus Gumbel
// noise.
//
// The noise hashes (seed, position, token id) exactly as the reference does; its logarithms are
// correct to a few units in the last place, like the reference's. The noise is bounded, so tokens
// too far below the best one are skipped without computing theirs.
//
// Source: Gumbel-max, Maddison et al. 2014; MurmurHash3_x86_32, Austin Appleby, public domain.
#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>
#include <vector>

#include "ops.h"
#include "vec.h"

namespace {

typedef double vd __attribute__((vector_size(2 * BM_VEC_BYTES)));

constexpr float kMaxGumbel = 22.2f;    // -log of the smallest exponential sample, 2^-32
constexpr uint32_t kHashedBytes = 16;  // seed low, seed high, position, token id
constexpr size_t kMinRoom = 1024;      // fewest candidates that are worth a selection

struct Row {
  const float* logits;
  int size;
  float heat, top_p;
  float least;  // smallest logit that min-p keeps
  int64_t top_k;
  uint32_t state;  // of the hash after seed and position
  float scaled(int token) const { return logits[token] / heat; }
};

inline uint32_t rotate(uint32_t x, int bits) { return x << bits | x >> (32 - bits); }
inline vu rotate(vu x, int bits) { return x << bits | x >> (32 - bits); }

template <class U>
inline U scramble(U block) {
  return rotate(block * 0xcc9e2d51u, 15) * 0x1b873593u;
}
template <class U>
inline U advance(U state, U scrambled) {
  return rotate(state ^ scrambled, 13) * 5u + 0xe6546b64u;
}

uint32_t state_of(int64_t seed, int64_t position) {
  uint32_t state = advance(0u, scramble(static_cast<uint32_t>(seed)));
  state = advance(state, scramble(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)));
  return advance(state, scramble(static_cast<uint32_t>(position)));
}

// Returns the noise of kLanes neighbouring tokens.
inline vf gumbel(uint32_t state, int first_token) {
  vu tokens = reinterpret_cast<vu>(lane_index() + first_token);
  vu hashed = advance(vu{} + state, scramble(tokens)) ^ kHashedBytes;
  hashed = (hashed ^ hashed >> 16) * 0x85ebca6bu;
  hashed = (hashed ^ hashed >> 13) * 0xc2b2ae35u;
  hashed ^= hashed >> 16;
  vi bits = reinterpret_cast<vi>(hashed & 0x7fffffffu);
  vf uniform = (__builtin_convertvector(bits, vf) + 0.5f) * 0x1p-31f;
  uniform = uniform > 1.0f - 0x1p-24f ? splat(1.0f - 0x1p-24f) : uniform;
  // log1p(-u) by log: the rounding error of 1 - u is divided out again (Goldberg 1991, th. 4).
  vf rest = 1.0f - uniform, lost = 1.0f - rest;
  vi exact = lost == 0.0f;
  vf exponential = -log(rest) * uniform / (exact ? splat(1.0f) : lost);
  return -log(exact ? uniform : exponential);
}

// Calls body(first token, scores) with the scores of kLanes neighbours, -inf past the last.
template <class Body>
inline void each_scores(const float* scores, int size, Body body) {
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, load(scores + i));
  if (i == size) return;
  vf last = splat(-INFINITY);
  for (int lane = 0; i + lane < size; lane++) last[lane] = scores[i + lane];
  body(i, last);
}

// Finds the largest score and its token, the first among equals. NaN is skipped; if no score is
// above -inf, the token is 0.
class Best {
 public:
  void take(int first_token, vf scores) {
    vi larger = scores > score_;
    score_ = larger ? scores : score_;
    token_ = larger ? lane_index() + first_token : token_;
  }
  float score() const { return reduce_max(score_); }
  int token() const {
    float highest = score();
    int token = INT32_MAX;
    for (int lane = 0; lane < kLanes; lane++)
      if (score_[lane] == highest) token = std::min(token, static_cast<int>(token_[lane]));
    return token;
  }

 private:
  vf score_ = splat(-INFINITY);
  vi token_ = {};
};

// Returns the k-th largest logit, or -inf if fewer are above -inf. Only logits above the k-th
// largest so far are kept, so one pass suffices unless the row is in ascending order.
float kth_largest(const Row& row, std::vector<float>& kept) {
  size_t k = static_cast<size_t>(row.top_k), room = std::max(4 * k, kMinRoom);
  kept.clear();
  float floor = -INFINITY;
  auto select = [&] {
    std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.end(), std::greater<float>());
    kept.resize(k);
    floor = kept[k - 1];
  };
  each_scores(row.logits, row.size, [&](int, vf logits) {
    if (!any(logits > floor)) return;
    for (int lane = 0; lane < kLanes; lane++)
      if (logits[lane] > floor) kept.push_back(logits[lane]);
    if (kept.size() >= room) select();
  });
  if (kept.size() < k) return -INFINITY;
  select();
  return floor;
}

// Maps a likelihood relative to the largest, 0 to 1, to a bucket: each power of two has sixteen.
inline int bucket_of(float weight) {
  uint32_t bits;
  std::memcpy(&bits, &weight, sizeof bits);
  return static_cast<int>(bits >> 19);
}
constexpr int kNumBuckets = (0x3f800000 >> 19) + 1;  // of 1.0, and all below

struct Candidate {
  float weight;
  int token;
};
constexpr float kLargestSpan = 87.0f;  // exp underflows below this: such tokens have no weight

struct Mass {
  double total, least;  // of all; the least of a token that can be inside a nucleus
};

// Computes likelihoods relative to the largest for tokens at or above `floor`, 0 for the others.
Mass weigh(const Row& row, float highest, float floor, std::vector<float>& weights) {
  vd sums = {};
  vi counts = {};  // a true comparison is -1
  each_scores(row.logits, row.size, [&](int i, vf logits) {
    vf scaled = logits / row.heat;
    vi kept = (scaled >= floor) & (logits >= row.least);
    vf weight = kept ? exp(scaled - highest) : vf{};
    store(weights.data() + i, weight);
    sums += __builtin_convertvector(weight, vd);
    counts -= kept;
  });
  double total = 0, num_kept = 0;
  for (int lane = 0; lane < kLanes; lane++) {
    total += sums[lane];
    num_kept += counts[lane];
  }
  // Tokens below (1 - p) / n of the mass sum to less than 1 - p, so none of them is inside.
  return {total, total * (1.0 - row.top_p) / num_kept};
}

// Returns the smallest scaled logit of the nucleus: the fewest most likely tokens at or above
// `floor` whose probability reaches p. Only the bucket in which it is reached is sorted.
float nucleus_floor(const Row& row, float highest, float floor, std::vector<float>& weights) {
  weights.resize(static_cast<size_t>(round_up(row.size, kLanes)));
  Mass mass = weigh(row, highest, floor, weights);
  // No branch per token: the candidates follow no pattern.
  static thread_local std::vector<Candidate> room;
  room.resize(std::max(room.size(), static_cast<size_t>(row.size) + 1));
  Candidate *candidates = room.data(), *end = candidates;
  float least = static_cast<float>(mass.least);
  each_scores(weights.data(), row.size, [&](int i, vf weight) {
    if (!any(weight >= least)) return;
    for (int lane = 0; lane < kLanes; lane++) {
      *end = {weight[lane], i + lane};
      end += weight[lane] >= least;
    }
  });
  double sums[kNumBuckets] = {}, wanted = row.top_p * mass.total, reached = 0;
  for (Candidate* each = candidates; each != end; each++)
    sums[bucket_of(each->weight)] += each->weight;
  int bucket = kNumBuckets - 1;
  while (bucket > 0 && reached + sums[bucket] < wanted) reached += sums[bucket--];

  end = std::remove_if(candidates, end,
                       [=](const Candidate& each) { return bucket_of(each.weight) != bucket; });
  std::sort(candidates, end,
            [](const Candidate& a, const Candidate& b) { return a.weight > b.weight; });
  for (Candidate* each = candidates; each != end; each++) {
    reached += each->weight;
    if (reached >= wanted) return row.scaled(each->token);
  }
  return std::max(floor, highest - kLargestSpan);  // rounded sums fall short of p: keep all
}

int64_t sample_row(Row row, float min_p_gap) {
  Best likeliest;
  each_scores(row.logits, row.size, [&](int i, vf logits) { likeliest.take(i, logits); });
  float highest = likeliest.score();
  // Without a finite largest logit there is no distribution; the batch must not fail for it.
  if (row.heat == 0.0f || !std::isfinite(highest)) return likeliest.token();

  row.least = highest + min_p_gap;
  static thread_local std::vector<float> scratch;
  float floor = -INFINITY;
  if (row.top_k > 0 && row.top_k < row.size) floor = kth_largest(row, scratch) / row.heat;
  if (row.top_p < 1.0f) floor = nucleus_floor(row, highest / row.heat, floor, scratch);

  int token = likeliest.token(), first = token / kLanes * kLanes;
  float noise = gumbel(row.state, first)[token - first];
  // Logits below this are too small even with the largest noise. A little lower, because scaling
  // rounds.
  float least = std::max(floor, row.scaled(token) + noise - kMaxGumbel) * row.heat;
  least -= std::fabs(least) * 1e-6f;
  Best best;
  each_scores(row.logits, row.size, [&](int i, vf logits) {
    if (!any(logits >= least)) return;
    vf scaled = logits / row.heat;
    vi kept = (scaled >= floor) & (logits >= row.least);
    best.take(i, kept ? scaled + gumbel(row.state, i) : splat(-INFINITY));
  });
  return best.token();
}

}  // namespace

BM_EXPORT void bm_sample(int64_t* out, const float* logits, const float* temperature,
                         const int64_t* top_k, const float* top_p, const float* min_p_gaps,
                         const int64_t* seeds, const int64_t* positions, int num_rows,
                         int vocab_size, long row_stride, int num_threads) {
  parallel_for(num_rows, num_threads, [=](int i) {
    out[i] = sample_row({logits + i * row_stride, vocab_size, temperature[i], top_p[i], 0.0f,
                         top_k[i], state_of(seeds[i], positions[i])},
                        min_p_gaps[i]);
  });
}
