// Sixteen numbers at a time, in the compiler's own vector types: the same source serves AVX-512, AVX2 and Arm, and
// float64 for the proofs. Only the bf16 dot product has an instruction of its own.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace luthier {

constexpr int W = 16;  // numbers in a vector

// The multiple of `step` below n, and above.
template <class N> constexpr N down(N n, N step) { return n / step * step; }
template <class N> constexpr N up(N n, N step) { return (n + step - 1) / step * step; }

struct bf16 {
    uint16_t bits;
};

typedef float F __attribute__((vector_size(64), aligned(4), may_alias));
typedef double D __attribute__((vector_size(128), aligned(8), may_alias));
typedef int32_t I32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int64_t I64 __attribute__((vector_size(128), aligned(8), may_alias));
typedef uint32_t U32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t U16 __attribute__((vector_size(32), aligned(2), may_alias));

// For each stored type: the type of its arithmetic, sixteen of them, and integers of the same width for comparisons.
template <class T> struct Of;
template <> struct Of<float> { using C = float; using V = F; using I = I32; };
template <> struct Of<bf16> { using C = float; using V = F; using I = I32; };
template <> struct Of<double> { using C = double; using V = D; using I = I64; };

inline float widen(bf16 x) {
    uint32_t u = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

// Rounds to nearest, ties to even.
inline void narrow(float f, bf16& out) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    out.bits = uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline void narrow(float f, float& out) { out = f; }
inline void narrow(double f, double& out) { out = f; }

inline U32 rounded_bits(F v) {  // bf16 in the low half of each lane
#if defined(__AVX512BF16__)
    return (U32)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    U32 u = (U32)v;
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
#endif
}

inline F load(const float* p) { return *(const F*)p; }
inline D load(const double* p) { return *(const D*)p; }
inline F load(const bf16* p) { return (F)(__builtin_convertvector(*(const U16*)p, U32) << 16); }
inline void store(float* p, F v) { *(F*)p = v; }
inline void store(double* p, D v) { *(D*)p = v; }
inline void store(bf16* p, F v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    *(U16*)p = __builtin_convertvector(rounded_bits(v), U16);
#endif
}

// The first n of sixteen numbers; the rest is `fill`.
template <class T> inline typename Of<T>::V load_some(const T* p, int n, typename Of<T>::C fill = 0) {
    typename Of<T>::V v;
    for (int i = 0; i < W; i++) v[i] = i < n ? widen(p[i]) : fill;
    return v;
}
template <class T> inline void store_some(T* p, typename Of<T>::V v, int n) {
    for (int i = 0; i < n; i++) narrow(v[i], p[i]);
}

inline float sum(F v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s = 0;
    for (int i = 0; i < W; i++) s += v[i];
    return s;
#endif
}
inline double sum(D v) {
    double s = 0;
    for (int i = 0; i < W; i++) s += v[i];
    return s;
}
inline float largest(F v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float s = v[0];
    for (int i = 1; i < W; i++) s = std::max(s, v[i]);
    return s;
#endif
}
inline double largest(D v) {
    double s = v[0];
    for (int i = 1; i < W; i++) s = std::max(s, v[i]);
    return s;
}
template <class V> inline V larger(V a, V b) { return a > b ? a : b; }

// e^x: x = n ln 2 + r with |r| <= ln 2 / 2, and a polynomial of degree 6 in r (relative error below 2e-7).
inline F exponential(F x) {
#if defined(__AVX512F__)
    const F k = (F)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
    const F t = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    F q = 1.9875691500e-4f * t + 1.3981999507e-3f;
    q = q * t + 8.3334519073e-3f;
    q = q * t + 4.1665795894e-2f;
    q = q * t + 1.6666665459e-1f;
    q = q * t + 5.0000001201e-1f;
    q = q * (t * t) + t + 1.0f;
    return (F)_mm512_scalef_ps((__m512)q, (__m512)k);
#else
    const F low = F{} - 87.33654f, high = F{} + 88.37626f;
    x = x < low ? low : x;
    x = x > high ? high : x;
    F n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    F r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    F p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    I32 k = __builtin_convertvector(n, I32);
    return (F)((I32)p + (k << 23));
#endif
}
inline D exponential(D x) {
    for (int i = 0; i < W; i++) x[i] = std::exp(x[i]);
    return x;
}

// Lane numbers 0 to 15.
template <class I> inline I lanes() {
    I v;
    for (int i = 0; i < W; i++) v[i] = i;
    return v;
}

// Sixteen vectors of sixteen 32-bit numbers, turned into their columns: four rounds of exchanging halves, quarters, ...
template <int S> inline void exchange(U32* r) {
    U32 low, high;
    for (int j = 0; j < W; j++) {
        low[j] = j & S ? 16 + j - S : j;
        high[j] = j & S ? 16 + j : j + S;
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++)
        if (!(i & S)) {
            const U32 a = r[i], b = r[i + S];
            r[i] = __builtin_shuffle(a, b, low);
            r[i + S] = __builtin_shuffle(a, b, high);
        }
}
inline void transpose(U32* r) {
    exchange<8>(r);
    exchange<4>(r);
    exchange<2>(r);
    exchange<1>(r);
}

// Dropout by a counter: whether number `counter` is dropped depends on the seed and the counter only (a 64-bit mix, Steele
// et al., "Fast splittable pseudorandom number generators", 2014, section 4.2). All bits of a lane: dropped.
typedef uint64_t U64 __attribute__((vector_size(128), aligned(8), may_alias));
struct Drop {
    uint64_t seed, threshold;
    double kept;  // what is left is multiplied by this
    Drop(double p, uint64_t seed) : seed(seed), threshold(uint64_t(p * 9007199254740992.0)), kept(1 / (1 - p)) {}
    explicit operator bool() const { return threshold; }
    template <class I> I lanes_dropped(uint64_t counter, uint64_t step = 1) const {
        U64 z;
        for (int i = 0; i < W; i++) z[i] = counter + uint64_t(i) * step + 1;
        z = z * 0x9e3779b97f4a7c15ull + seed;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return __builtin_convertvector(((z ^ (z >> 31)) >> 11) < threshold, I);
    }
    template <class I, class V> V apply(V v, uint64_t counter, uint64_t step = 1) const {
        return lanes_dropped<I>(counter, step) ? V{} : v * decltype(v[0] + v[0])(kept);
    }
};

template <class C> inline C* scratch(std::vector<C>& v, size_t n) {
    if (v.size() < n) v.resize(n);
    return v.data();
}

}  // namespace luthier
