// A float vector type for every instruction set, with conversions and functions.
//
// The GCC/Clang vector extension compiles to zmm, ymm or xmm registers (or NEON) from the same
// source; each .cpp is compiled once per instruction set and the loader picks one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own header, bug 105593
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#if defined(__AVX512F__)
#define BM_VEC_BYTES 64
#elif defined(__AVX2__)
#define BM_VEC_BYTES 32
#else
#define BM_VEC_BYTES 16
#endif

namespace {

typedef float vf __attribute__((vector_size(BM_VEC_BYTES)));
typedef int32_t vi __attribute__((vector_size(BM_VEC_BYTES)));
typedef uint32_t vu __attribute__((vector_size(BM_VEC_BYTES)));
typedef uint16_t vh __attribute__((vector_size(BM_VEC_BYTES / 2)));
typedef float vf_any __attribute__((vector_size(BM_VEC_BYTES), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(BM_VEC_BYTES / 2), aligned(2), may_alias));
typedef int8_t vb __attribute__((vector_size(BM_VEC_BYTES / 4)));
typedef int8_t vb_any __attribute__((vector_size(BM_VEC_BYTES / 4), aligned(1), may_alias));

constexpr int kLanes = BM_VEC_BYTES / 4;

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

// Calls body with a value of the dtype that the loader numbers 0, 1, 2.
template <class Body>
void with_dtype(int dtype, Body body) {
  if (dtype == 0) body(float{});
  else if (dtype == 1) body(bf16{});
  else body(fp16{});
}

inline vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf_any*>(p) = v; }
inline vf splat(float x) { return vf{} + x; }
inline vf max(vf a, vf b) { return a > b ? a : b; }

// A bf16 is the upper half of a float.
inline vf load(const bf16* p) {
#if defined(__AVX512F__)
  // GCC 12 makes five instructions of the conversion below.
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return reinterpret_cast<vf>(_mm512_slli_epi32(wide, 16));
#else
  vh h = *reinterpret_cast<const vh_any*>(p);
  return reinterpret_cast<vf>(__builtin_convertvector(h, vu) << 16);
#endif
}

// Rounds to nearest even; a NaN stays a NaN.
inline void store(bf16* p, vf v) {
#if defined(__AVX512BF16__)
  __m256bh h = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(p, &h, sizeof h);
#else
  vu u = reinterpret_cast<vu>(v);
  vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  vu result = v == v ? rounded : (u >> 16) | 0x40;
  *reinterpret_cast<vh_any*>(p) = __builtin_convertvector(result, vh);
#endif
}

// IEEE half precision.
inline vf load(const fp16* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  return reinterpret_cast<vf>(
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  vu h = __builtin_convertvector(*reinterpret_cast<const vh_any*>(p), vu);
  vu magnitude = (h & 0x7fff) << 13;
  // Changing the exponent's bias from 15 to 127 by a product also turns subnormals into normals.
  vf scaled = reinterpret_cast<vf>(magnitude) * 0x1p112f;
  vu bits = (h & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : reinterpret_cast<vu>(scaled);
  return reinterpret_cast<vf>(bits | (h & 0x8000) << 16);
#endif
}

// Rounds to nearest even.
inline void store(fp16* p, vf v) {
#if defined(__AVX512F__)
  __m256i h = _mm512_cvtps_ph(reinterpret_cast<__m512>(v), 0);
  std::memcpy(p, &h, sizeof h);
#elif defined(__F16C__)
  __m128i h = _mm256_cvtps_ph(reinterpret_cast<__m256>(v), 0);
  std::memcpy(p, &h, sizeof h);
#else
  vu u = reinterpret_cast<vu>(v), magnitude = u & 0x7fffffff;
  vu normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves the bits of a subnormal half, rounded, at the bottom of the sum.
  vu subnormal = reinterpret_cast<vu>(reinterpret_cast<vf>(magnitude) + 0.5f) - 0x3f000000;
  vu h = magnitude < (113u << 23) ? subnormal : normal;
  h = h > 0x7c00 ? vu{} + 0x7c00 : h;
  h = magnitude > 0x7f800000 ? vu{} + 0x7e00 : h;
  *reinterpret_cast<vh_any*>(p) = __builtin_convertvector(h | ((u >> 16) & 0x8000), vh);
#endif
}

// Loads the first n (1 to kLanes - 1) elements; the other lanes are 0.
template <class T>
inline vf load_part(const T* p, int n) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, sizeof(T) * n);
  return load(lanes);
}
template <class T>
inline void store_part(T* p, vf v, int n) {
  T lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, sizeof(T) * n);
}

// Calls body(i, n) with n = kLanes, then once for the rest. `if (n == kLanes)` is folded away.
template <class T>
inline vf load_upto(const T* p, int n) {
  return n == kLanes ? load(p) : load_part(p, n);
}
template <class T>
inline void store_upto(T* p, vf v, int n) {
  if (n == kLanes) store(p, v);
  else store_part(p, v, n);
}
template <class Body>
inline void each_vector(int count, Body body) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, kLanes);
  if (i < count) body(i, count - i);
}

inline float reduce_add(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  float s = 0;
  for (int i = 0; i < kLanes; i++) s += v[i];
  return s;
#endif
}
inline float reduce_max(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#else
  float m = v[0];
  for (int i = 1; i < kLanes; i++) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

inline vi lane_index() {
  vi v;
  for (int i = 0; i < kLanes; i++) v[i] = i;
  return v;
}

// e^x to about 2 ulp. Below -87 the result is about 1e-38 instead of a subnormal; above 88 it is
// 1.7e38 instead of inf, so that x / (1 + e^-x) is finite for every finite x. NaN yields NaN.
// Source: the Cephes single precision exp (Moshier), range reduction and polynomial.
inline vf exp(vf x) {
  vf clamped = x < -87.0f ? splat(-87.0f) : x;
  clamped = clamped > 88.0f ? splat(88.0f) : clamped;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  vf shifted = clamped * 1.44269504088896341f + magic;
  vf n = shifted - magic;
  vf r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  vi exponent = reinterpret_cast<vi>(shifted) - reinterpret_cast<vi>(splat(magic));
  return reinterpret_cast<vf>(reinterpret_cast<vi>(p) + (exponent << 23));
}

// 2^x to about 2 ulp for x of at most 0, as in a softmax. Below -126 it is about 1e-38 instead of a
// subnormal or 0, also for -inf. NaN yields NaN.
// The polynomial of 2^r on [-0.5, 0.5] was fitted for the least relative error (9e-8, 1.5 ulp).
inline vf exp2_of_negative(vf x) {
  x = x < -126.0f ? splat(-126.0f) : x;
  vf shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits, see exp
  vf r = x - (shifted - 12582912.0f);
  vf p = splat(1.3264727204e-03f);
  p = p * r + 9.6715126407e-03f;
  p = p * r + 5.5507337432e-02f;
  p = p * r + 2.4022242085e-01f;
  p = p * r + 6.9314697760e-01f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_scalef_ps(reinterpret_cast<__m512>(p),
                                               reinterpret_cast<__m512>(shifted - 12582912.0f)));
#else
  vf scaled = reinterpret_cast<vf>(reinterpret_cast<vi>(p) + (reinterpret_cast<vi>(shifted) << 23));
  return x == x ? scaled : x;
#endif
}

// The natural logarithm of a positive, finite, normal x, to about 2 ulp.
// Source: the Cephes single precision log (Moshier), range reduction and polynomial.
inline vf log(vf x) {
  const int32_t root_half = 0x3f3504f3;  // the bits of sqrt(0.5), where the fraction's range begins
  vi offset = reinterpret_cast<vi>(x) - root_half;
  vf exponent = __builtin_convertvector(offset >> 23, vf);
  vf f = reinterpret_cast<vf>((offset & 0x7fffff) + root_half) - 1.0f;
  vf p = splat(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  vf square = f * f;
  vf rest = p * f * square + exponent * -2.12194440e-4f - 0.5f * square;
  return f + rest + exponent * 0.693359375f;
}

inline bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) !=
         0;
#else
  int32_t found = 0;
  for (int i = 0; i < kLanes; i++) found |= mask[i];
  return found != 0;
#endif
}

// Rounds to the nearest integer, ties to even.
inline vi round_to_int(vf v) {
#if defined(__AVX512F__)
  return reinterpret_cast<vi>(_mm512_cvtps_epi32(reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<vi>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(v)));
#elif defined(__SSE2__)
  return reinterpret_cast<vi>(_mm_cvtps_epi32(reinterpret_cast<__m128>(v)));
#else
  vi result;
  for (int i = 0; i < kLanes; i++) result[i] = static_cast<int32_t>(__builtin_rintf(v[i]));
  return result;
#endif
}

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

inline int min_int(int a, int b) { return a < b ? a : b; }
inline int max_int(int a, int b) { return a > b ? a : b; }
inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

}  // namespace
