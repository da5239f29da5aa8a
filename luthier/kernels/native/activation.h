// The activations of inner layers, and their slopes.
#pragma once
#include "simd.h"

namespace luthier {

// The error function: float32 by a rational form with an error below 2e-7 (Abramowitz and Stegun, 7.1.26).
inline F error_function(F x, F gauss) {  // gauss = exp(-x^2)
    const F a = x < 0 ? -x : x;
    const F t = 1 / (1 + 0.3275911f * a);
    F p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const F y = 1 - p * t * gauss;
    return x < 0 ? -y : y;
}
inline D error_function(D x, D) {
    for (int i = 0; i < W; i++) x[i] = std::erf(x[i]);
    return x;
}

// f(z) and f'(z). kind 0: z sigmoid(z). kind 1: the tanh form of GELU, z sigmoid(2 u), u = k (z + c z^3). kind 2: GELU,
// z (1 + erf(z / sqrt 2)) / 2.
template <class V> inline void activation(V z, int kind, V& value, V& slope) {
    if (kind == 0) {
        V s = 1 / (1 + exponential(-z));
        value = z * s;
        slope = s + value * (1 - s);
    } else if (kind == 2) {
        const V gauss = exponential(z * z * decltype(z[0] + z[0])(-0.5));
        const V s = (1 + error_function(z * decltype(z[0] + z[0])(0.7071067811865476), gauss)) * decltype(z[0] + z[0])(0.5);
        value = z * s;
        slope = s + z * gauss * decltype(z[0] + z[0])(0.3989422804014327);
    } else {
        const double k = 0.7978845608028654, c = 0.044715;
        auto K = decltype(z[0] + z[0])(k);
        auto A = decltype(z[0] + z[0])(c);
        V u = K * (z + A * z * z * z);
        V s = 1 / (1 + exponential(u * -2));
        value = z * s;
        slope = s + z * s * (1 - s) * 2 * K * (1 + 3 * A * z * z);
    }
}

}  // namespace luthier
