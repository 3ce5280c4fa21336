// The layers of a Llama-family decoder in one call.
//
// A step of one sequence takes about 10 ms and has 240 ops: calling each from Python would cost
// about 2 ms more. The layers call the exported ops, which the tests check one by one.
#include <chrono>
#include <cstring>
#include <vector>

#include "ops.h"
#include "vec.h"

// How a matrix is packed: by bm_linear_pack (0), bm_int8_pack (1) or bm_int4_pack (2), which also
// needs the last two.
struct BmFormat {
  int kind, group, has_zeros;
};

struct BmLayer {
  const void *input_norm, *qkv, *q_norm, *k_norm, *output, *post_attention_norm, *gate_up, *down;
  const float *qkv_bias, *output_bias, *gate_up_bias, *down_bias;  // null if there is none
  void *k_cache, *v_cache;
  BmFormat qkv_format, output_format, gate_up_format, down_format;
};

struct BmDecoder {
  int num_layers, hidden, inner, num_q_heads, num_kv_heads, head_dim, half;
  int num_blocks, block_size, window, dtype, element_size;
  float eps, scale;
};

// The rows of one adapter in a step.
struct BmAdapter {
  const BmLoraPair* pairs;  // [num_layers, 4 matrices], in the order of `Matrix`
  const int64_t *token_rows, *sample_rows;
  int num_token_rows, num_sample_rows;
};

struct BmStep {
  const float *cos, *sin;  // [num_tokens, half]
  const int64_t *slots, *sample_rows;
  const int32_t *block_tables, *cu_seqlens_q, *seq_lens;
  void *residual, *x;            // [num_tokens, hidden]
  void *qkv, *attended, *gated;  // [num_tokens, as wide as the name says]
  void* quantized;  // room for the widest of these, quantized; null if all matrices are dense
  float* scales;    // room for their steps; null likewise
  int num_tokens, num_samples, num_seqs, max_blocks, num_threads;
  long table_stride;
  const BmAdapter* adapters;  // [num_adapters]; a step without any does nothing for them
  float* gate_up;             // [num_tokens, 2 * inner]; null without adapters
  int num_adapters;
  double* phase_s;  // null, or [3] += seconds in matrix products, attention, the rest
};

namespace {

enum Phase { kLinear, kAttention, kRest };

// Adds the time since the last op to the op's phase; if disabled, it costs one comparison.
class PhaseClock {
 public:
  explicit PhaseClock(double* phase_s) : phase_s_(phase_s) {
    if (phase_s_ != nullptr) last_ = Clock::now();
  }
  void end(Phase phase) {
    if (phase_s_ == nullptr) return;
    Clock::time_point now = Clock::now();
    phase_s_[phase] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  double* phase_s_;
  Clock::time_point last_;
};

// The matrices of a layer that an adapter may change.
enum Matrix { kQkv, kOutput, kGateUp, kDown, kNumMatrices };

bool is_inside(const int64_t* rows, int count, int limit) {
  for (int i = 0; i < count; i++)
    if (rows[i] < 0 || rows[i] >= limit) return false;
  return true;
}

bool are_inside(const BmStep& s) {
  for (int i = 0; i < s.num_adapters; i++) {
    const BmAdapter& each = s.adapters[i];
    if (!is_inside(each.token_rows, each.num_token_rows, s.num_tokens) ||
        !is_inside(each.sample_rows, each.num_sample_rows, s.num_samples))
      return false;
  }
  return true;
}

// Moves the wanted rows, in ascending order, to the front.
void keep_rows(void* data, const int64_t* rows, int count, long row_bytes) {
  char* bytes = static_cast<char*>(data);
  for (int i = 0; i < count; i++)
    if (rows[i] != i) std::memcpy(bytes + i * row_bytes, bytes + rows[i] * row_bytes, row_bytes);
}

long packed_lanes(BmFormat format, int columns, int k, int dtype) {
  return format.kind == 0   ? bm_linear_packed_lanes(columns, k, dtype)
         : format.kind == 1 ? bm_int8_packed_lanes(columns, k)
                            : bm_int4_packed_lanes(columns, k, format.group, format.has_zeros);
}

// Quantizes dense rows of x for a matrix, unless it is dense.
void quantize(const BmDecoder& m, const BmStep& s, BmFormat format, const void* x, int rows,
              int k) {
  if (format.kind == 1)
    bm_int8_quantize(x, s.quantized, s.scales, rows, k, k, m.dtype, s.num_threads);
  if (format.kind == 2)
    bm_int4_quantize(x, s.quantized, s.scales, rows, k, k, m.dtype, s.num_threads);
}

// Multiplies rows, of x or as quantize() left them, by a matrix.
void multiply_quantized(const BmDecoder& m, const BmStep& s, BmFormat format, void* out,
                        const void* x, const void* packed, const float* bias, int rows, int columns,
                        int k, long out_stride, int gated, bool float_out) {
  int out_dtype = float_out ? 0 : m.dtype;
  if (format.kind == 0)
    bm_linear(out, x, packed, bias, rows, columns, k, k, out_stride, gated, float_out, m.dtype,
              s.num_threads);
  else if (format.kind == 1)
    bm_int8_linear(out, s.quantized, s.scales, packed, bias, rows, columns, k, out_stride, gated,
                   out_dtype, s.num_threads);
  else
    bm_int4_linear(out, s.quantized, s.scales, packed, bias, rows, columns, k, format.group,
                   format.has_zeros, out_stride, gated, out_dtype, s.num_threads);
}

// Multiplies dense rows of x by one layer's matrix.
void multiply(const BmDecoder& m, const BmStep& s, BmFormat format, void* out, const void* x,
              const void* packed, const float* bias, int rows, int columns, int k, int gated) {
  quantize(m, s, format, x, rows, k);
  multiply_quantized(m, s, format, out, x, packed, bias, rows, columns, k, columns, gated, false);
}

// What the adapters of a step add to the products of a layer.
class LayerAdapters {
 public:
  LayerAdapters(const BmDecoder& m, const BmStep& s, int layer) : m_(m), s_(s), layer_(layer) {}

  // After this, the products have only the rows that sample.
  void keep_samples() { only_samples_ = true; }

  void add(Matrix matrix, void* out, const void* x, const int* widths, int num_parts, int k,
           bool float_out = false) const {
    if (s_.num_adapters == 0) return;
    std::vector<BmLoraRows> groups;
    long out_stride = 0;
    for (int part = 0; part < num_parts; part++) out_stride += widths[part];
    for (int i = 0; i < s_.num_adapters; i++) {
      const BmAdapter& each = s_.adapters[i];
      const BmLoraPair* pair = each.pairs + layer_ * kNumMatrices + matrix;
      int num_rows = only_samples_ ? each.num_sample_rows : each.num_token_rows;
      if (pair->down != nullptr && num_rows > 0)
        groups.push_back({pair, only_samples_ ? each.sample_rows : each.token_rows, num_rows});
    }
    if (groups.empty()) return;
    bm_add_lora(out, x, groups.data(), static_cast<int>(groups.size()), widths, num_parts, k,
                out_stride, m_.dtype, float_out, s_.num_threads);
  }

 private:
  const BmDecoder& m_;
  const BmStep& s_;
  int layer_;
  bool only_samples_ = false;
};

// gated = silu(gate) * up of the rows of x, where adapters change gate and up: they are computed
// without the activation, in float, so that the rows without an adapter are those of multiply().
void multiply_gated(const BmDecoder& m, const BmLayer& layer, const BmStep& s, int rows,
                    const LayerAdapters& adapters) {
  long panel_columns = round_up(m.inner, bm_linear_panel());
  BmFormat format = layer.gate_up_format;
  long lanes = packed_lanes(format, m.inner, m.hidden, m.dtype);
  quantize(m, s, format, s.x, rows, m.hidden);
  for (int part = 0; part < 2; part++) {
    const uint32_t* weight = static_cast<const uint32_t*>(layer.gate_up) + part * lanes;
    const float* bias = layer.gate_up_bias;
    if (bias != nullptr) bias += part * panel_columns;
    multiply_quantized(m, s, format, s.gate_up + part * m.inner, s.x, weight, bias, rows, m.inner,
                       m.hidden, 2L * m.inner, 0, true);
  }
  const int widths[] = {m.inner, m.inner};
  adapters.add(kGateUp, s.gate_up, s.x, widths, 2, m.hidden, true);
  bm_float_silu_and_mul(s.gated, s.gate_up, rows, m.inner, m.dtype, s.num_threads);
}

int attend(const BmDecoder& m, const BmLayer& layer, const BmStep& s, const LayerAdapters& adapters,
           PhaseClock& clock) {
  int q_width = m.num_q_heads * m.head_dim, width = q_width + 2 * m.num_kv_heads * m.head_dim;
  long num_slots = static_cast<long>(m.num_blocks) * m.block_size;
  multiply(m, s, layer.qkv_format, s.qkv, s.x, layer.qkv, layer.qkv_bias, s.num_tokens, width,
           m.hidden, 0);
  const int widths[] = {q_width, (width - q_width) / 2, (width - q_width) / 2};
  adapters.add(kQkv, s.qkv, s.x, widths, 3, m.hidden);
  clock.end(kLinear);
  if (bm_rope_and_cache(s.qkv, layer.k_cache, layer.v_cache, s.cos, s.sin, s.slots, layer.q_norm,
                        layer.k_norm, m.eps, s.num_tokens, m.num_q_heads, m.num_kv_heads,
                        m.head_dim, m.half, num_slots, width, m.dtype, s.num_threads) >= 0)
    return 1;
  clock.end(kRest);
  if (bm_paged_attention(s.attended, s.qkv, layer.k_cache, layer.v_cache, s.block_tables,
                         s.cu_seqlens_q, s.seq_lens, s.num_tokens, s.num_seqs, m.num_q_heads,
                         m.num_kv_heads, m.head_dim, m.num_blocks, m.block_size, s.max_blocks,
                         s.table_stride, width, m.head_dim, q_width, m.head_dim, m.scale, m.window,
                         nullptr, m.dtype, s.num_threads) >= 0)
    return 2;
  clock.end(kAttention);
  return 0;
}

}  // namespace

// residual: [num_tokens, hidden], the embeddings; changed. Afterwards the first num_samples rows of
// residual and x are those of sample_rows, for the final norm to add.
// Returns 0, or if an index is out of range: 1 for a slot, 2 for a length or block id, 3 for a
// sample row, 4 for a row of an adapter.
BM_EXPORT int bm_decoder_layers(const BmDecoder* decoder, const BmLayer* layers,
                                const BmStep* step) {
  const BmDecoder& m = *decoder;
  const BmStep& s = *step;
  int rows = s.num_tokens, q_width = m.num_q_heads * m.head_dim;
  for (int i = 0; i < s.num_samples; i++)
    if (s.sample_rows[i] < i || s.sample_rows[i] >= rows) return 3;  // keep_rows moves them up
  if (!are_inside(s)) return 4;
  PhaseClock clock(s.phase_s);
  for (int i = 0; i < m.num_layers; i++) {
    const BmLayer& layer = layers[i];
    LayerAdapters adapters(m, s, i);
    if (i == 0)
      bm_rms_norm(s.x, s.residual, nullptr, layer.input_norm, rows, m.hidden, m.hidden, m.eps,
                  m.dtype, s.num_threads);
    else
      bm_rms_norm(s.x, s.x, s.residual, layer.input_norm, rows, m.hidden, m.hidden, m.eps, m.dtype,
                  s.num_threads);
    clock.end(kRest);
    if (int invalid = attend(m, layer, s, adapters, clock)) return invalid;
    // The remaining ops treat rows independently, so the others are not needed.
    if (i == m.num_layers - 1 && s.num_samples < rows) {
      rows = s.num_samples;
      adapters.keep_samples();
      keep_rows(s.attended, s.sample_rows, rows, static_cast<long>(q_width) * m.element_size);
      keep_rows(s.residual, s.sample_rows, rows, static_cast<long>(m.hidden) * m.element_size);
    }
    clock.end(kRest);
    multiply(m, s, layer.output_format, s.x, s.attended, layer.output, layer.output_bias, rows,
             m.hidden, q_width, 0);
    adapters.add(kOutput, s.x, s.attended, &m.hidden, 1, q_width);
    clock.end(kLinear);
    bm_rms_norm(s.x, s.x, s.residual, layer.post_attention_norm, rows, m.hidden, m.hidden, m.eps,
                m.dtype, s.num_threads);
    clock.end(kRest);
    if (s.num_adapters == 0)
      multiply(m, s, layer.gate_up_format, s.gated, s.x, layer.gate_up, layer.gate_up_bias, rows,
               m.inner, m.hidden, 1);
    else multiply_gated(m, layer, s, rows, adapters);
    multiply(m, s, layer.down_format, s.x, s.gated, layer.down, layer.down_bias, rows, m.hidden,
             m.inner, 0);
    adapters.add(kDown, s.x, s.gated, &m.hidden, 1, m.inner);
    clock.end(kLinear);
  }
  return 0;
}
