// What happens to each row of a matrix by itself: norms, rotary positions, gated activations, the softmax of the head.
// A row is read from memory once or twice and written once; statistics are in float32 or wider.
#include "activation.h"
#include "simd.h"

namespace luthier {

template <class T>
void rms_norm(const T* x, const T* delta, const T* weight, T* total, T* out, typename Of<T>::C* inverse, int64_t rows,
              int64_t n, double eps, int threads) {
    using V = typename Of<T>::V;
    using C = typename Of<T>::C;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const T* a = x + r * n;
        V squares{};
        if (delta) {  // the residual sum, rounded as it is stored, before its norm is taken
            const T* b = delta + r * n;
            T* t = total + r * n;
            int64_t i = 0;
            for (; i + W <= n; i += W) store(t + i, load(a + i) + load(b + i));
            if (i < n) store_some(t + i, load_some(a + i, n - i) + load_some(b + i, n - i), n - i);
            a = t;
        }
        int64_t i = 0;
        for (; i + W <= n; i += W) {
            V v = load(a + i);
            squares += v * v;
        }
        if (i < n) {
            V v = load_some(a + i, n - i);
            squares += v * v;
        }
        const C scale = C(1) / std::sqrt(sum(squares) / C(n) + C(eps));
        inverse[r] = scale;
        T* o = out + r * n;
        for (i = 0; i + W <= n; i += W) store(o + i, load(a + i) * scale * load(weight + i));
        if (i < n) store_some(o + i, load_some(a + i, n - i) * scale * load_some(weight + i, n - i), n - i);
    }
}

// dx = rest + s (g w - x s^2 mean(g w x)); per thread, dw += g x s.
template <class T>
void rms_norm_backward(const T* grad, const T* x, const T* weight, const typename Of<T>::C* inverse, const T* rest,
                       T* dx, typename Of<T>::C* dweight, int64_t rows, int64_t n, int threads) {
    using V = typename Of<T>::V;
    using C = typename Of<T>::C;
    // A fixed number of parts, so that the sum over rows does not depend on the number of threads.
    const int parts = 16;
    std::vector<C> partial(dweight ? size_t(parts) * n : 0);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < parts; part++) {
        C* dw = dweight ? partial.data() + size_t(part) * n : nullptr;
        for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; r++) {
            const T *g = grad + r * n, *a = x + r * n, *keep = rest ? rest + r * n : nullptr;
            T* d = dx + r * n;
            const C s = inverse[r];
            V dot{};
            int64_t i = 0;
            for (; i + W <= n; i += W) dot += load(g + i) * load(weight + i) * load(a + i);
            if (i < n) dot += load_some(g + i, n - i) * load_some(weight + i, n - i) * load_some(a + i, n - i);
            const C mean = sum(dot) / C(n) * s * s;
            for (i = 0; i + W <= n; i += W) {
                V v = (load(g + i) * load(weight + i) - load(a + i) * mean) * s;
                store(d + i, keep ? v + load(keep + i) : v);
            }
            if (i < n) {
                V v = (load_some(g + i, n - i) * load_some(weight + i, n - i) - load_some(a + i, n - i) * mean) * s;
                store_some(d + i, keep ? v + load_some(keep + i, n - i) : v, n - i);
            }
            if (dw)
                for (i = 0; i < n; i++) dw[i] += widen(g[i]) * widen(a[i]) * s;
        }
    }
    if (dweight)
        for (int64_t i = 0; i < n; i++) {
            C total = 0;
            for (int part = 0; part < parts; part++) total += partial[size_t(part) * n + i];
            dweight[i] = total;
        }
}

// The residual sum x + dropout(delta), and its norm (t - mean) s w + b.
template <class T>
void layer_norm(const T* x, const T* delta, const T* weight, const T* bias, T* total, T* out, typename Of<T>::C* mean,
                typename Of<T>::C* inverse, int64_t rows, int64_t n, double eps, double p, uint64_t seed, int threads) {
    using V = typename Of<T>::V;
    using C = typename Of<T>::C;
    using I = typename Of<T>::I;
    const Drop drop(p, seed);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const T* a = x + r * n;
        auto get = [&](const T* q, int64_t i) { return n - i >= W ? load(q + i) : load_some(q + i, int(n - i)); };
        auto put = [&](T* q, int64_t i, V v) {
            if (n - i >= W) store(q + i, v);
            else store_some(q + i, v, int(n - i));
        };
        if (delta) {
            for (int64_t i = 0; i < n; i += W) {
                V d = get(delta + r * n, i);
                put(total + r * n, i, get(a, i) + (drop ? drop.apply<I>(d, r * n + i) : d));
            }
            a = total + r * n;
        }
        V sums{};
        for (int64_t i = 0; i < n; i += W) sums += get(a, i);
        const C m = sum(sums) / C(n);
        V squares{};
        for (int64_t i = 0; i < n; i += W) {
            V v = (n - i >= W ? load(a + i) : load_some(a + i, int(n - i), m)) - m;
            squares += v * v;
        }
        const C s = C(1) / std::sqrt(sum(squares) / C(n) + C(eps));
        mean[r] = m;
        inverse[r] = s;
        for (int64_t i = 0; i < n; i += W) put(out + r * n, i, (get(a, i) - m) * s * get(weight, i) + get(bias, i));
    }
}

// With h = (t - mean) s: dt = rest + s (g w - mean(g w) - h mean(g w h)); ddelta is what dropout lets through of dt;
// dw = sum g h and db = sum g over rows.
template <class T>
void layer_norm_backward(const T* grad, const T* total, const T* weight, const typename Of<T>::C* mean,
                         const typename Of<T>::C* inverse, const T* rest, T* dx, T* ddelta, typename Of<T>::C* dweight,
                         typename Of<T>::C* dbias, int64_t rows, int64_t n, double p, uint64_t seed, int threads) {
    using V = typename Of<T>::V;
    using C = typename Of<T>::C;
    using I = typename Of<T>::I;
    const Drop drop(p, seed);
    const int parts = 16;  // a fixed number, so that sums over rows do not depend on the number of threads
    const int64_t wide = (n + W - 1) / W * W;
    std::vector<C> partial(dweight ? size_t(parts) * wide * 2 : 0);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < parts; part++) {
        C* dw = dweight ? partial.data() + size_t(part) * wide * 2 : nullptr;
        C* db = dw + wide;
        for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; r++) {
            const C m = mean[r], s = inverse[r];
            const T *g = grad + r * n, *t = total + r * n;
            auto get = [&](const T* q, int64_t i) { return n - i >= W ? load(q + i) : load_some(q + i, int(n - i)); };
            auto put = [&](T* q, int64_t i, V v) {
                if (n - i >= W) store(q + i, v);
                else store_some(q + i, v, int(n - i));
            };
            V first{}, second{};
            for (int64_t i = 0; i < n; i += W) {
                const V u = get(g, i) * get(weight, i), h = (get(t, i) - m) * s;
                first += u;
                second += u * h;
            }
            const C a = sum(first) / C(n), b = sum(second) / C(n);
            for (int64_t i = 0; i < n; i += W) {
                const V u = get(g, i), h = (get(t, i) - m) * s;
                V d = (u * get(weight, i) - a - h * b) * s;
                if (rest) d += get(rest + r * n, i);
                put(dx + r * n, i, d);
                if (ddelta) put(ddelta + r * n, i, drop.apply<I>(d, r * n + i));
                if (dw) {
                    store(dw + i, load(dw + i) + u * h);
                    store(db + i, load(db + i) + u);
                }
            }
        }
    }
    if (dweight)
        for (int64_t i = 0; i < n; i++) {
            C a = 0, b = 0;
            for (int part = 0; part < parts; part++) {
                a += partial[size_t(part) * wide * 2 + i];
                b += partial[size_t(part) * wide * 2 + wide + i];
            }
            dweight[i] = a;
            dbias[i] = b;
        }
}

// Rotates pairs (x[i], x[i + half]) of each head by the angle of the token's position, in place; sign -1 turns back.
template <class T>
void rotate(T* x, const typename Of<T>::C* cosine, const typename Of<T>::C* sine, int64_t tokens, int64_t heads,
            int64_t size, int64_t half, int64_t stride, int sign, int threads) {
    using V = typename Of<T>::V;
    using C = typename Of<T>::C;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        const C *c = cosine + t * half, *s = sine + t * half;
        for (int64_t h = 0; h < heads; h++) {
            T* a = x + t * stride + h * size;
            T* b = a + half;
            int64_t i = 0;
            for (; i + W <= half; i += W) {
                V u = load(a + i), v = load(b + i), cs = load(c + i), sn = load(s + i) * C(sign);
                store(a + i, u * cs - v * sn);
                store(b + i, v * cs + u * sn);
            }
            if (int k = int(half - i)) {
                V u = load_some(a + i, k), v = load_some(b + i, k), cs = load_some(c + i, k);
                V sn = load_some(s + i, k) * C(sign);
                store_some(a + i, u * cs - v * sn, k);
                store_some(b + i, v * cs + u * sn, k);
            }
        }
    }
}

template <class T>
void gate(const T* z, const T* up, T* out, int64_t count, int kind, int threads) {
    using V = typename Of<T>::V;
    const int64_t blocks = (count + W - 1) / W;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t i = b * W, k = std::min<int64_t>(W, count - i);
        V value, slope;
        if (k == W) {
            activation(load(z + i), kind, value, slope);
            store(out + i, up ? value * load(up + i) : value);
        } else {
            activation(load_some(z + i, k), kind, value, slope);
            store_some(out + i, up ? value * load_some(up + i, k) : value, k);
        }
    }
}

// From the gradient of f(z) u: the product once more, and the gradients of z and u.
template <class T>
void gate_backward(const T* grad, const T* z, const T* up, T* out, T* dz, T* dup, int64_t count, int kind,
                   int threads) {
    using V = typename Of<T>::V;
    const int64_t blocks = (count + W - 1) / W;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t i = b * W, k = std::min<int64_t>(W, count - i);
        V value, slope;
        const V one = V{} + 1;
        if (k == W) {
            V g = load(grad + i), u = up ? load(up + i) : one;
            activation(load(z + i), kind, value, slope);
            if (out) store(out + i, value * u);
            store(dz + i, g * u * slope);
            if (up) store(dup + i, g * value);
        } else {
            V g = load_some(grad + i, k), u = up ? load_some(up + i, k) : one;
            activation(load_some(z + i, k), kind, value, slope);
            if (out) store_some(out + i, value * u, k);
            store_some(dz + i, g * u * slope, k);
            if (up) store_some(dup + i, g * value, k);
        }
    }
}

// log softmax(cap(z + bias))[target] of each row of z [rows, n]; with `keep`, z becomes d log p / d z.
template <class T>
void head(T* z, const T* bias, const int64_t* target, typename Of<T>::C* logprob, typename Of<T>::C* entropy,
          int64_t rows, int64_t n, double softcap, int keep, int threads) {
    using V = typename Of<T>::V;
    using C = typename Of<T>::C;
    const C cap = C(softcap);
#pragma omp parallel num_threads(threads)
    {
        std::vector<C> row_buffer(n + W);
        C* row = row_buffer.data();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            T* a = z + r * n;
            V top = V{} - std::numeric_limits<C>::infinity();
            for (int64_t i = 0; i < n; i += W) {
                const int k = int(std::min<int64_t>(W, n - i));
                V v = k == W ? load(a + i) : load_some(a + i, k, -std::numeric_limits<C>::infinity());
                if (bias) v += k == W ? load(bias + i) : load_some(bias + i, k);
                if (softcap > 0)
                    for (int j = 0; j < k; j++) v[j] = cap * std::tanh(v[j] / cap);
                store(row + i, v);
                top = larger(top, v);
            }
            const C m = largest(top), picked = row[target[r]];
            V total{}, weighted{};
            for (int64_t i = 0; i < n; i += W) {
                V v = load(row + i) - m;
                V e = exponential(v);
                if (n - i < W)
                    for (int j = int(n - i); j < W; j++) e[j] = 0, v[j] = 0;
                total += e;
                if (entropy) weighted += e * v;
            }
            const C s = sum(total);
            logprob[r] = picked - m - std::log(s);
            if (entropy) entropy[r] = std::log(s) - sum(weighted) / s;
            if (!keep) continue;
            const C shift = m + std::log(s);
            for (int64_t i = 0; i < n; i += W) {
                const int k = int(std::min<int64_t>(W, n - i));
                V v = load(row + i);
                V d = -exponential(v - shift);
                if (target[r] >= i && target[r] < i + W) d[target[r] - i] += 1;
                if (softcap > 0) d *= 1 - (v / cap) * (v / cap);
                if (k == W) store(a + i, d);
                else store_some(a + i, d, k);
            }
        }
    }
}

}  // namespace luthier

using luthier::bf16;
#define ROWS(T, C, NAME)                                                                                               \
    extern "C" void rms_norm_##NAME(const T* x, const T* delta, const T* w, T* total, T* out, C* inverse, int64_t rows, \
                                    int64_t n, double eps, int threads) {                                              \
        luthier::rms_norm<T>(x, delta, w, total, out, inverse, rows, n, eps, threads);                                 \
    }                                                                                                                  \
    extern "C" void rms_norm_backward_##NAME(const T* g, const T* x, const T* w, const C* inverse, const T* rest,       \
                                             T* dx, C* dw, int64_t rows, int64_t n, int threads) {                      \
        luthier::rms_norm_backward<T>(g, x, w, inverse, rest, dx, dw, rows, n, threads);                               \
    }                                                                                                                  \
    extern "C" void layer_norm_##NAME(const T* x, const T* delta, const T* w, const T* b, T* total, T* out, C* mean,    \
                                      C* inverse, int64_t rows, int64_t n, double eps, double p, uint64_t seed,        \
                                      int threads) {                                                                   \
        luthier::layer_norm<T>(x, delta, w, b, total, out, mean, inverse, rows, n, eps, p, seed, threads);             \
    }                                                                                                                  \
    extern "C" void layer_norm_backward_##NAME(const T* g, const T* total, const T* w, const C* mean, const C* inverse, \
                                               const T* rest, T* dx, T* ddelta, C* dw, C* db, int64_t rows, int64_t n,  \
                                               double p, uint64_t seed, int threads) {                                 \
        luthier::layer_norm_backward<T>(g, total, w, mean, inverse, rest, dx, ddelta, dw, db, rows, n, p, seed, threads); \
    }                                                                                                                  \
    extern "C" void rotate_##NAME(T* x, const C* cosine, const C* sine, int64_t tokens, int64_t heads, int64_t size,    \
                                  int64_t half, int64_t stride, int sign, int threads) {                               \
        luthier::rotate<T>(x, cosine, sine, tokens, heads, size, half, stride, sign, threads);                         \
    }                                                                                                                  \
    extern "C" void gate_##NAME(const T* z, const T* up, T* out, int64_t count, int kind, int threads) {                \
        luthier::gate<T>(z, up, out, count, kind, threads);                                                            \
    }                                                                                                                  \
    extern "C" void gate_backward_##NAME(const T* g, const T* z, const T* up, T* out, T* dz, T* dup, int64_t count,     \
                                         int kind, int threads) {                                                      \
        luthier::gate_backward<T>(g, z, up, out, dz, dup, count, kind, threads);                                       \
    }                                                                                                                  \
    extern "C" void head_##NAME(T* z, const T* bias, const int64_t* target, C* logprob, C* entropy, int64_t rows,       \
                                int64_t n, double softcap, int keep, int threads) {                                    \
        luthier::head<T>(z, bias, target, logprob, entropy, rows, n, softcap, keep, threads);                          \
    }
ROWS(bf16, float, bf16)
ROWS(float, float, f32)
ROWS(double, double, f64)
