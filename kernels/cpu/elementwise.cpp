// The ops between the matrix products: RMS norm, rotary embedding, SiLU gating, cache writes.
//
// They move few bytes; the gain is a dozen fewer torch calls per layer. All arithmetic is in float
// and rounded once to the tensor's dtype, except when a stored value (the residual) is read again.
#include <cmath>

#include "ops.h"
#include "vec.h"

BM_EXPORT int bm_abi_version() { return 10; }

namespace {

template <class T>
float sum_of_squares(const T* x, int n) {
  vf a = {}, b = {};
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    vf u = load(x + i), v = load(x + i + kLanes);
    a += u * u;
    b += v * v;
  }
  each_vector(n - i, [&](int d, int m) {
    vf u = load_upto(x + i + d, m);
    a += u * u;
  });
  return reduce_add(a + b);
}

// out = x / rms(x) * weight; out may be x.
template <class T>
void normalize(T* out, const T* x, const T* weight, int n, float eps) {
  float inverse = 1.0f / std::sqrt(sum_of_squares(x, n) / static_cast<float>(n) + eps);
  each_vector(n, [&](int i, int m) {
    store_upto(out + i, load_upto(x + i, m) * inverse * load_upto(weight + i, m), m);
  });
}

template <class T>
void rms_norm(T* out, const T* x, T* residual, const T* weight, int num_rows, int hidden,
              long x_stride, float eps, int num_threads) {
  parallel_rows(num_rows, hidden, num_threads, [=](int begin, int end) {
    for (int row = begin; row < end; row++) {
      const T* from = x + row * x_stride;
      if (residual != nullptr) {
        T* sum = residual + static_cast<long>(row) * hidden;
        each_vector(hidden, [&](int i, int n) {
          store_upto(sum + i, load_upto(from + i, n) + load_upto(sum + i, n), n);
        });
        from = sum;
      }
      normalize(out + static_cast<long>(row) * hidden, from, weight, hidden, eps);
    }
  });
}

template <class T, class In>
void silu_and_mul(T* out, const In* gate_up, int num_rows, int width, long stride,
                  int num_threads) {
  parallel_rows(num_rows, 4L * width, num_threads, [=](int begin, int end) {
    for (int row = begin; row < end; row++) {
      const In* gate = gate_up + row * stride;
      T* to = out + static_cast<long>(row) * width;
      each_vector(width, [&](int i, int n) {
        vf g = load_upto(gate + i, n);
        store_upto(to + i, g / (exp(-g) + 1.0f) * load_upto(gate + width + i, n), n);
      });
    }
  });
}

// Rotates pairs (x[i], x[i + half]) by the token's angles; out may be x.
template <class T>
void rotate(T* out, const T* x, const float* cos, const float* sin, int half) {
  each_vector(half, [&](int i, int n) {
    vf a = load_upto(x + i, n), b = load_upto(x + half + i, n);
    vf c = load_upto(cos + i, n), s = load_upto(sin + i, n);
    store_upto(out + i, a * c - b * s, n);
    store_upto(out + half + i, b * c + a * s, n);
  });
}

template <class T>
struct RopeAndCache {
  T* qkv;  // [num_tokens, row_stride]: q heads, k heads, v heads; q and k are changed in place
  T *k_cache, *v_cache;
  const float *cos, *sin;  // [num_tokens, half]
  const int64_t* slots;
  const T *q_norm, *k_norm;  // null, or [head_dim]
  float eps;
  int num_q_heads, num_kv_heads, head_dim, half;
  long row_stride;

  void row(int token) const {
    long angles = static_cast<long>(token) * half;
    T* head = qkv + token * row_stride;
    const T* keys = head + num_q_heads * head_dim;
    for (int h = 0; h < num_q_heads + num_kv_heads; h++, head += head_dim) {
      const T* norm = h < num_q_heads ? q_norm : k_norm;
      if (norm != nullptr) normalize(head, head, norm, head_dim, eps);
      rotate(head, head, cos + angles, sin + angles, half);
    }
    if (slots[token] < 0) return;
    long width = static_cast<long>(num_kv_heads) * head_dim;
    std::memcpy(k_cache + slots[token] * width, keys, sizeof(T) * width);
    std::memcpy(v_cache + slots[token] * width, keys + width, sizeof(T) * width);
  }
};

template <class T>
void rope(T* x, const float* cos, const float* sin, int num_tokens, int num_heads, int head_dim,
          int half, long row_stride, int num_threads) {
  parallel_rows(num_tokens, static_cast<long>(num_heads) * head_dim, num_threads,
                [=](int begin, int end) {
                  for (int token = begin; token < end; token++) {
                    long angles = static_cast<long>(token) * half;
                    T* head = x + token * row_stride;
                    for (int h = 0; h < num_heads; h++, head += head_dim)
                      rotate(head, head, cos + angles, sin + angles, half);
                  }
                });
}

// Returns the first index whose value is outside [low, high), or -1.
int find_outside(const int64_t* values, int count, int64_t low, int64_t high) {
  for (int i = 0; i < count; i++)
    if (values[i] < low || values[i] >= high) return i;
  return -1;
}

template <class T>
void rope_and_cache(void* qkv, void* k_cache, void* v_cache, const float* cos, const float* sin,
                    const int64_t* slots, const void* q_norm, const void* k_norm, float eps,
                    int num_tokens, int num_q_heads, int num_kv_heads, int head_dim, int half,
                    long row_stride, int num_threads) {
  RopeAndCache<T> op{static_cast<T*>(qkv),
                     static_cast<T*>(k_cache),
                     static_cast<T*>(v_cache),
                     cos,
                     sin,
                     slots,
                     static_cast<const T*>(q_norm),
                     static_cast<const T*>(k_norm),
                     eps,
                     num_q_heads,
                     num_kv_heads,
                     head_dim,
                     half,
                     row_stride};
  long width = static_cast<long>(num_q_heads + 2 * num_kv_heads) * head_dim;
  parallel_rows(num_tokens, width, num_threads, [&](int begin, int end) {
    for (int token = begin; token < end; token++) op.row(token);
  });
}

}  // namespace

BM_EXPORT void bm_rms_norm(void* out, const void* x, void* residual, const void* weight,
                           int num_rows, int hidden, long x_stride, float eps, int dtype,
                           int num_threads) {
  with_dtype(dtype, [=](auto zero) {
    typedef decltype(zero) T;
    rms_norm(static_cast<T*>(out), static_cast<const T*>(x), static_cast<T*>(residual),
             static_cast<const T*>(weight), num_rows, hidden, x_stride, eps, num_threads);
  });
}

BM_EXPORT void bm_silu_and_mul(void* out, const void* gate_up, int num_rows, int width, long stride,
                               int dtype, int num_threads) {
  with_dtype(dtype, [=](auto zero) {
    typedef decltype(zero) T;
    silu_and_mul(static_cast<T*>(out), static_cast<const T*>(gate_up), num_rows, width, stride,
                 num_threads);
  });
}

BM_EXPORT void bm_float_silu_and_mul(void* out, const float* gate_up, int num_rows, int width,
                                     int dtype, int num_threads) {
  with_dtype(dtype, [=](auto zero) {
    silu_and_mul(static_cast<decltype(zero)*>(out), gate_up, num_rows, width, 2L * width,
                 num_threads);
  });
}

BM_EXPORT void bm_rope(void* x, const float* cos, const float* sin, int num_tokens, int num_heads,
                       int head_dim, int half, long row_stride, int dtype, int num_threads) {
  with_dtype(dtype, [=](auto zero) {
    rope(static_cast<decltype(zero)*>(x), cos, sin, num_tokens, num_heads, head_dim, half,
         row_stride, num_threads);
  });
}

BM_EXPORT int bm_write_kv(const char* key, const char* value, char* k_cache, char* v_cache,
                          const int64_t* slots, int num_tokens, long num_slots,
                          long key_stride_bytes, long value_stride_bytes, long row_bytes,
                          int num_threads) {
  int invalid = find_outside(slots, num_tokens, -1, num_slots);
  if (invalid >= 0) return invalid;
  parallel_rows(num_tokens, row_bytes, num_threads, [=](int begin, int end) {
    for (int token = begin; token < end; token++) {
      if (slots[token] < 0) continue;
      std::memcpy(k_cache + slots[token] * row_bytes, key + token * key_stride_bytes, row_bytes);
      std::memcpy(v_cache + slots[token] * row_bytes, value + token * value_stride_bytes,
                  row_bytes);
    }
  });
  return -1;
}

BM_EXPORT int bm_rope_and_cache(void* qkv, void* k_cache, void* v_cache, const float* cos,
                                const float* sin, const int64_t* slots, const void* q_norm,
                                const void* k_norm, float eps, int num_tokens, int num_q_heads,
                                int num_kv_heads, int head_dim, int half, long num_slots,
                                long row_stride, int dtype, int num_threads) {
  int invalid = find_outside(slots, num_tokens, -1, num_slots);
  if (invalid >= 0) return invalid;
  with_dtype(dtype, [=](auto zero) {
    rope_and_cache<decltype(zero)>(qkv, k_cache, v_cache, cos, sin, slots, q_norm, k_norm, eps,
                                   num_tokens, num_q_heads, num_kv_heads, head_dim, half,
                                   row_stride, num_threads);
  });
  return -1;
}
