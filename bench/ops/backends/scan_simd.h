// Vectors of the machine's own width, written once: GCC's and Clang's vector extensions lower them to AVX-512, AVX,
// SSE or NEON. Only what the compilers do not find by themselves (AVX-512's scale and reduce) is an intrinsic.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

constexpr int W = LANES;
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));

INLINE V splat(float x) { return x - V{}; }

INLINE V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }

// The first `lanes` numbers, zeros behind them: a block at the end of the channels is narrower than a vector.
INLINE V load(const float* p, int lanes) {
    if (__builtin_expect(lanes == W, 1)) return load(p);
    V v{};
    std::memcpy(&v, p, lanes * sizeof(float));
    return v;
}

INLINE void store(float* p, V v, int lanes) {
    if (__builtin_expect(lanes == W, 1)) return store(p, v);
    std::memcpy(p, &v, lanes * sizeof(float));
}

// 2^x: x is split into an integer and a rest in [-1/2, 1/2], where a polynomial of degree 6 with constant term
// exactly 1 (small steps must not drift) has relative error 2e-9. NaN stays NaN; underflow gives 0 or a denormal.
INLINE V exp2_poly(V f) {
    V p = f * 1.53533621e-4f + 1.33988745e-3f;
    p = p * f + 9.61843736e-3f;
    p = p * f + 5.55033247e-2f;
    p = p * f + 2.40226479e-1f;
    p = p * f + 6.93147203e-1f;
    return p * f + 1.0f;
}

INLINE V exp2v(V x) {
#if LANES == 16
    V f = (V)_mm512_reduce_ps((__m512)x, 0);
    return (V)_mm512_scalef_ps((__m512)exp2_poly(f), (__m512)(x - f));
#else
    // Comparisons in this order keep NaN. 127.4 still rounds to the exponent 127: what is larger overflows elsewhere.
    x = x < splat(-126.9f) ? splat(-126.9f) : x;
    x = x > splat(127.4f) ? splat(127.4f) : x;
    V t = x + 12582912.0f;  // 1.5 * 2^23: the sum is rounded to an integer, found in its low bits
    V p = exp2_poly(x - (t - 12582912.0f));
    return (V)((I)p + ((I)t << 23));
#endif
}

// softplus(z) and, where asked for, its derivative (which costs a division). log(1 + e) = 2 atanh(e / (2 + e)) keeps
// full relative accuracy for small e; above 20 the sum is z to the last bit, which is where torch switches to z.
template <bool with_derivative>
INLINE V softplus(V z, V& derivative) {
    V e = exp2v((V)((I)z | (int32_t)0x80000000) * 1.44269504f);  // exp(-|z|)
    V w = e / (e + 2.0f), w2 = w * w;
    V p = w2 * 0.140059955f + 0.140009022f;
    p = p * w2 + 0.200107636f;
    p = p * w2 + 0.333332081f;
    V log1p = (w + w) + (w + w) * (p * w2);
    if (with_derivative) derivative = (z > V{} ? splat(1.0f) : e) / (e + 1.0f);
    return (z > V{} ? z : V{}) + log1p;
}

// W vectors to the vector of their W sums over lanes: pairs are folded, half the width at each of log2(W) levels.
#if defined(__clang__) || __GNUC__ >= 12
constexpr int fold_index(int i, int half, int second) {
    // The result holds, for every group of 2 * half lanes of a and then of b, the first (or second) half.
    int per = W / half / 2, group = i / half;
    return (group < per ? 0 : W) + (group % per) * 2 * half + second * half + i % half;
}

template <int half, size_t... i>
INLINE V fold(V a, V b, std::index_sequence<i...>) {
    return __builtin_shufflevector(a, b, fold_index(i, half, 0)...) +
           __builtin_shufflevector(a, b, fold_index(i, half, 1)...);
}

template <int half>
INLINE void fold_level(V* v) {  // v holds 2 * half vectors and receives half as many
    for (int i = 0; i < half; ++i) v[i] = fold<half>(v[2 * i], v[2 * i + 1], std::make_index_sequence<W>{});
    if constexpr (half > 1) fold_level<half / 2>(v);
}

INLINE V lane_sums(const V* rows) {
    V v[W];
    for (int i = 0; i < W; ++i) v[i] = rows[i];
    fold_level<W / 2>(v);
    return v[0];
}
#else
INLINE V lane_sums(const V* rows) {
    V out{};
    for (int i = 0; i < W; ++i)
        for (int lane = 0; lane < W; ++lane) out[i] += rows[i][lane];
    return out;
}
#endif
