// A decoding step: one new token in each of a few rows, through all layers, against a cache of keys and values; and the
// two things that follow it: the product with the head, and the choice of a token.
//
// What such a step costs is reading the weights. They are read as they lie in memory, once for up to 64 rows: each is
// multiplied with a vector whose lanes are rows. So the order of a row's sums depends neither on what its neighbours are
// nor on the number of threads (but it does on whether there are more than sixteen rows). All sizes except the number of
// rows and the outputs of the head are multiples of 16.
#include "activation.h"
#include "simd.h"
#include <type_traits>

namespace luthier {

// Rows that share one reading of the weights. float64 serves proofs and is compiled for sixteen only.
template <class T> constexpr int MOST = sizeof(T) == 8 ? 16 : 64;

// run(NV, first row, rows) for each group of rows; NV vectors hold one.
template <class T, class Run> void by_rows(int64_t rows, Run run) {
    for (int64_t begin = 0; begin < rows; begin += MOST<T>) {
        const int64_t n = std::min<int64_t>(MOST<T>, rows - begin);
        if constexpr (MOST<T> > 16) {
            if (n > 48) run(std::integral_constant<int, 4>(), begin, n);
            else if (n > 32) run(std::integral_constant<int, 3>(), begin, n);
            else if (n > 16) run(std::integral_constant<int, 2>(), begin, n);
            else run(std::integral_constant<int, 1>(), begin, n);
        } else
            run(std::integral_constant<int, 1>(), begin, n);
    }
}

#if defined(__AVX512BF16__)
typedef uint32_t Two;  // two neighbouring weights, as the processor's dot product takes them
template <class T> struct Item { using E = T; static constexpr int PAIR = 1; };
template <> struct Item<bf16> { using E = Two; static constexpr int PAIR = 2; };
inline F product(F sum, Two a, U32 b) {
    return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(a)), (__m512bh)b);
}
inline U32 lanes_of(const Two* p) { return *(const U32*)p; }
#else
template <class T> struct Item { using E = T; static constexpr int PAIR = 1; };
inline F product(F sum, bf16 a, F b) { return sum + widen(a) * b; }
#endif
inline F product(F sum, float a, F b) { return sum + a * b; }
inline D product(D sum, double a, D b) { return sum + a * b; }
template <class E> inline auto lanes_of(const E* p) { return load(p); }

// y = factor (W x + scale B A x) + bias for each row x; factor, bias, A and B may be absent.
template <class T> struct Linear {
    const T *W, *bias, *A, *B;
    const typename Of<T>::C* factor;
    int64_t in, out, rank;
    double scale;
};

template <class T> struct Norm {
    const T* weight;
    double eps;
};

template <class T> struct Layer {
    Linear<T> q, k, v, o, gate, up, down;
    Norm<T> before_attention, before_inner, behind_attention, behind_inner, of_q, of_k;
    T *keys, *values;                             // [slots, kv_heads, capacity, size]
    const typename Of<T>::C *cosine, *sine;       // [rows, half]
    int64_t half, window;
    double scale;
};

struct Step {
    int64_t rows, layers, width, heads, kv_heads, size, inner, capacity, activation;
    const int64_t *slots, *lengths;  // by row: its place in the cache, and the tokens that are there
    int64_t threads;
};

// x [rows, K] turned into a panel [K / PAIR, 16 NV]: lanes are rows.
template <class T, int NV> void turn(const T* x, int64_t K, std::vector<typename Item<T>::E>& panel) {
    using E = typename Item<T>::E;
    const int64_t depth = K / Item<T>::PAIR;
    if (int64_t(panel.size()) < depth * NV * W) panel.resize(depth * NV * W);
    const E* rows = (const E*)x;
    for (int v = 0; v < NV; v++)
        for (int64_t k = 0; k < depth; k += 8) {
            E* out = panel.data() + k * NV * W + v * W;
            for (int i = 0; i < W; i++)
                for (int j = 0; j < 8; j++) out[j * NV * W + i] = rows[(v * W + i) * depth + k + j];
        }
}

// R outputs of W [out, K] for all rows: c [R, 16 NV]. With P = 2 even and odd terms are summed apart, because one sum for
// each output would wait for itself.
template <class E, class C, int R, int NV, int P>
inline void tile(const E* weights, int64_t K, const E* panel, C* c) {
    using V = typename Of<C>::V;
    V sums[P][R][NV] = {};
    for (int64_t k = 0; k < K; k += 8) {
        // The next rows are wanted next: a row of weights is too short for the processor to see where reading goes.
        for (int r = 0; r < R; r++) __builtin_prefetch(weights + (r + R) * K + k);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            decltype(lanes_of(panel)) x[NV];
            for (int v = 0; v < NV; v++) x[v] = lanes_of(panel + ((k + j) * NV + v) * W);
            for (int r = 0; r < R; r++)
                for (int v = 0; v < NV; v++) sums[j % P][r][v] = product(sums[j % P][r][v], weights[r * K + k + j], x[v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) {
            V s = sums[0][r][v];
            if (P == 2) s += sums[P - 1][r][v];
            store(c + (r * NV + v) * W, s);
        }
}

// Sixteen outputs of a matrix for all rows: c [16, 16 NV].
template <class T, int NV>
inline void sixteen(const T* weights, int64_t K, const typename Item<T>::E* panel, typename Of<T>::C* c) {
    using E = typename Item<T>::E;
    using C = typename Of<T>::C;
    constexpr int R = NV < 4 ? 8 : 4, P = NV == 1 ? 2 : 1;
    const int64_t depth = K / Item<T>::PAIR;
    for (int r = 0; r < W; r += R) tile<E, C, R, NV, P>((const E*)weights + r * depth, depth, panel, c + r * NV * W);
}

// Outputs o to o + 15 of a linear layer for all rows, from the panels of x and of A x: c [16, 16 NV].
template <class T, int NV>
void outputs(const Linear<T>& l, int64_t o, const typename Item<T>::E* x, const typename Item<T>::E* low,
             typename Of<T>::C* c) {
    using C = typename Of<T>::C;
    sixteen<T, NV>(l.W + o * l.in, l.in, x, c);
    C more[W * NV * W];
    if (l.B) sixteen<T, NV>(l.B + o * l.rank, l.rank, low, more);
    for (int r = 0; r < W; r++)
        for (int v = 0; v < NV; v++) {
            C* p = c + (r * NV + v) * W;
            auto y = load(p);
            if (l.B) y += load(more + (r * NV + v) * W) * C(l.scale);
            if (l.factor) y *= l.factor[o + r];
            if (l.bias) y += widen(l.bias[o + r]);
            store(p, y);
        }
}

// c [16, 16 NV] turned back into sixteen columns of y [rows, stride].
template <int NV, class Y> inline void put(const float* c, int64_t rows, Y* y, int64_t stride) {
    for (int v = 0; v < NV; v++) {
        U32 square[W];
        for (int r = 0; r < W; r++) square[r] = *(const U32*)(c + (r * NV + v) * W);
        transpose(square);
        for (int i = 0; i < W && v * W + i < rows; i++) store(y + (v * W + i) * stride, (F)square[i]);
    }
}
template <int NV, class Y> inline void put(const double* c, int64_t rows, Y* y, int64_t stride) {
    for (int64_t i = 0; i < rows; i++)
        for (int r = 0; r < W; r++) y[i * stride + r] = c[r * NV * W + i];
}

// What each thread keeps for itself: panels of the input and of up to three products A x.
template <class T> struct Panels {
    std::vector<typename Item<T>::E> x, low[3];
};

// The panels that `count` linear layers with the input x [rows, in] need; `low` [3][rows, rank] holds A x on the way.
template <class T, int NV>
void enter(const T* x, const Linear<T>* const* layers, int count, int64_t rows, std::vector<T>* low, Panels<T>& p) {
    turn<T, NV>(x, layers[0]->in, p.x);
    bool any = false;
    for (int j = 0; j < count; j++) any = any || layers[j]->A;
    if (!any) return;
    for (int j = 0; j < count; j++) {
        const Linear<T>& l = *layers[j];
        const Linear<T> A{l.A, nullptr, nullptr, nullptr, nullptr, l.in, l.rank, 0, 0};
#pragma omp for schedule(static) nowait
        for (int64_t o = 0; o < l.rank; o += W) {
            typename Of<T>::C c[W * NV * W];
            outputs<T, NV>(A, o, p.x.data(), nullptr, c);
            put<NV>(c, rows, low[j].data() + o, l.rank);
        }
    }
#pragma omp barrier
    for (int j = 0; j < count; j++)
        if (layers[j]->A) turn<T, NV>(low[j].data(), layers[j]->rank, p.low[j]);
}

// `count` linear layers of the same input.
template <class T, int NV>
void project(const T* x, const Linear<T>* const* layers, T* const* y, int count, int64_t rows, std::vector<T>* low,
             Panels<T>& p) {
    enter<T, NV>(x, layers, count, rows, low, p);
    for (int j = 0; j < count; j++) {
        const Linear<T>& l = *layers[j];
#pragma omp for schedule(dynamic, 2) nowait
        for (int64_t o = 0; o < l.out; o += W) {
            typename Of<T>::C c[W * NV * W];
            outputs<T, NV>(l, o, p.x.data(), p.low[j].data(), c);
            put<NV>(c, rows, y[j] + o, l.out);
        }
    }
#pragma omp barrier
}

// f(gate x) up x.
template <class T, int NV>
void gated(const T* x, const Linear<T>& gate, const Linear<T>& up, T* y, int kind, int64_t rows, std::vector<T>* low,
           Panels<T>& p) {
    const Linear<T>* layers[2] = {&gate, &up};
    enter<T, NV>(x, layers, 2, rows, low, p);
#pragma omp for schedule(dynamic, 2)
    for (int64_t o = 0; o < gate.out; o += W) {
        typename Of<T>::C a[W * NV * W], b[W * NV * W];
        outputs<T, NV>(gate, o, p.x.data(), p.low[0].data(), a);
        outputs<T, NV>(up, o, p.x.data(), p.low[1].data(), b);
        for (int i = 0; i < W * NV * W; i += W) {
            typename Of<T>::V value, slope;
            activation(load(a + i), kind, value, slope);
            store(a + i, value * load(b + i));
        }
        put<NV>(a, rows, y + o, gate.out);
    }
}

template <class T> void normalise(const T* x, const Norm<T>& norm, T* out, int64_t n) {
    using C = typename Of<T>::C;
    typename Of<T>::V squares{};
    for (int64_t i = 0; i < n; i += W) squares += load(x + i) * load(x + i);
    const C scale = C(1) / std::sqrt(sum(squares) / C(n) + C(norm.eps));
    for (int64_t i = 0; i < n; i += W) store(out + i, load(x + i) * scale * load(norm.weight + i));
}

// x += the norm `inner` of delta where there is one, delta itself otherwise; out = the norm `outer` of x.
template <class T> void add_and_normalise(T* x, T* delta, const Norm<T>& inner, const Norm<T>& outer, T* out, int64_t n) {
    if (delta) {
        if (inner.weight) normalise(delta, inner, delta, n);
        for (int64_t i = 0; i < n; i += W) store(x + i, load(x + i) + load(delta + i));
    }
    normalise(x, outer, out, n);
}

template <class T>
void turn_head(T* x, const typename Of<T>::C* cosine, const typename Of<T>::C* sine, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        typename Of<T>::C a = widen(x[i]), b = widen(x[half + i]), c = cosine[i], s = sine[i];
        narrow(a * c - b * s, x[i]);
        narrow(b * c + a * s, x[half + i]);
    }
}

// The sums of sixteen vectors.
inline F sums(F* v) {
    transpose((U32*)v);
    F s = v[0];
    for (int i = 1; i < W; i++) s += v[i];
    return s;
}
inline D sums(D* v) {
    D s;
    for (int i = 0; i < W; i++) s[i] = sum(v[i]);
    return s;
}

// Up to sixteen rows of x [n, size] in the type of arithmetic.
template <class T, class C> inline void widened(const T* x, int64_t n, int64_t size, C* out) {
    for (int64_t i = 0; i < std::min<int64_t>(W, n) * size; i += W) store(out + i, load(x + i));
}

// The query heads q [group, size] of one row that share a key head: k and v [size] are put behind the `length` tokens of
// the cache, then attended to with them.
template <class T>
void attend(const Layer<T>& l, const T* q, const T* k, const T* v, T* out, T* keys, T* values, int64_t length,
            int64_t group, int64_t size, std::vector<typename Of<T>::C>& room) {
    using C = typename Of<T>::C;
    using V = typename Of<T>::V;
    std::memcpy(keys + length * size, k, size * sizeof(T));
    std::memcpy(values + length * size, v, size * sizeof(T));
    const int64_t first = l.window ? std::max<int64_t>(0, length + 1 - l.window) : 0;
    const int64_t n = length + 1 - first, padded = (n + W - 1) / W * W;
    keys += first * size;
    values += first * size;
    C* scores = scratch(room, size_t(group) * (padded + 2 * size) + size_t(W) * size);
    C *queries = scores + group * padded, *results = queries + group * size, *some = results + group * size;
    for (int64_t i = 0; i < group * size; i += W) {
        store(queries + i, load(q + i) * C(l.scale));
        store(results + i, V{});
    }
    for (int64_t j = 0; j < n; j += W) {
        widened(keys + j * size, n - j, size, some);
        for (int64_t h = 0; h < group; h++) {
            V dots[W] = {};
            for (int64_t d = 0; d < size; d += W) {
                const V query = load(queries + h * size + d);
                for (int i = 0; i < W; i++) dots[i] += query * load(some + i * size + d);
            }
            store(scores + h * padded + j, sums(dots));
        }
    }
    for (int64_t h = 0; h < group; h++) {
        C* p = scores + h * padded;
        // What stands behind the last key was computed from nothing.
        for (int64_t j = n; j < padded; j++) p[j] = -std::numeric_limits<C>::infinity();
        V top = load(p), total{};
        for (int64_t j = W; j < padded; j += W) top = larger(top, load(p + j));
        const C most = largest(top);
        for (int64_t j = 0; j < padded; j += W) {
            V e = exponential(load(p + j) - most);
            for (int64_t i = n; i < j + W; i++) e[i - j] = 0;
            store(p + j, e);
            total += e;
        }
        const C whole = C(1) / sum(total);
        for (int64_t j = 0; j < padded; j += W) store(p + j, load(p + j) * whole);
    }
    for (int64_t j = 0; j < n; j += W) {
        const int m = int(std::min<int64_t>(W, n - j));
        widened(values + j * size, m, size, some);
        for (int64_t h = 0; h < group; h++)
            for (int64_t d = 0; d < size; d += W) {
                V r = load(results + h * size + d);
                for (int i = 0; i < m; i++) r += load(some + i * size + d) * scores[h * padded + j + i];
                store(results + h * size + d, r);
            }
    }
    for (int64_t i = 0; i < group * size; i += W) store(out + i, load(results + i));
}

// Rows [0, n) of `x` [n, width], in place: hidden states behind the norm `last`.
template <class T, int NV>
void decode_some(const Step& s, const Layer<T>* layers, const Norm<T>& last, int64_t begin, int64_t n, T* x) {
    using C = typename Of<T>::C;
    const int64_t padded = NV * W, group = s.heads / s.kv_heads, across = s.heads * s.size, kv = s.kv_heads * s.size;
    int64_t rank = 0;
    for (int64_t i = 0; i < s.layers; i++)
        for (auto l : {&layers[i].q, &layers[i].k, &layers[i].v, &layers[i].o, &layers[i].gate, &layers[i].up, &layers[i].down})
            rank = std::max(rank, l->rank);
    // The rows behind the last are zeros.
    std::vector<T> h(padded * s.width), delta(padded * s.width), q(padded * across), k(padded * kv), v(padded * kv),
        heads(padded * across), inner(padded * s.inner), low[3];
    for (auto& one : low) one.resize(padded * rank);
#pragma omp parallel num_threads(int(s.threads))
    {
        Panels<T> panels;
        std::vector<C> room;
        const Norm<T> none{nullptr, 0};
        for (int64_t i = 0; i < s.layers; i++) {
            const Layer<T>& l = layers[i];
            const Norm<T>& behind = i ? layers[i - 1].behind_inner : none;
#pragma omp for schedule(static)
            for (int64_t r = 0; r < n; r++)
                add_and_normalise(x + r * s.width, i ? delta.data() + r * s.width : nullptr, behind, l.before_attention,
                                  h.data() + r * s.width, s.width);
            const Linear<T>* three[3] = {&l.q, &l.k, &l.v};
            T* const parts[3] = {q.data(), k.data(), v.data()};
            project<T, NV>(h.data(), three, parts, 3, n, low, panels);
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < n * s.kv_heads; task++) {
                const int64_t r = task / s.kv_heads, g = task % s.kv_heads, row = begin + r;
                T *mine = q.data() + r * across + g * group * s.size, *key = k.data() + r * kv + g * s.size;
                const C *cosine = l.cosine + row * l.half, *sine = l.sine + row * l.half;
                for (int64_t head = 0; head < group; head++) {
                    T* one = mine + head * s.size;
                    if (l.of_q.weight) normalise(one, l.of_q, one, s.size);
                    turn_head(one, cosine, sine, l.half);
                }
                if (l.of_k.weight) normalise(key, l.of_k, key, s.size);
                turn_head(key, cosine, sine, l.half);
                const int64_t place = (s.slots[row] * s.kv_heads + g) * s.capacity * s.size;
                attend(l, mine, key, v.data() + r * kv + g * s.size, heads.data() + r * across + g * group * s.size,
                       l.keys + place, l.values + place, s.lengths[row], group, s.size, room);
            }
            const Linear<T>* one[1] = {&l.o};
            T* const result[1] = {delta.data()};
            project<T, NV>(heads.data(), one, result, 1, n, low, panels);
#pragma omp for schedule(static)
            for (int64_t r = 0; r < n; r++)
                add_and_normalise(x + r * s.width, delta.data() + r * s.width, l.behind_attention, l.before_inner,
                                  h.data() + r * s.width, s.width);
            gated<T, NV>(h.data(), l.gate, l.up, inner.data(), int(s.activation), n, low, panels);
            one[0] = &l.down;
            project<T, NV>(inner.data(), one, result, 1, n, low, panels);
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n; r++)
            add_and_normalise(x + r * s.width, delta.data() + r * s.width, layers[s.layers - 1].behind_inner, last,
                              x + r * s.width, s.width);
    }
}

template <class T> void decode(const Step& s, const Layer<T>* layers, const Norm<T>& last, T* x) {
    by_rows<T>(s.rows, [&](auto vectors, int64_t begin, int64_t n) {
        decode_some<T, vectors.value>(s, layers, last, begin, n, x + begin * s.width);
    });
}

// y [n, out] = x [n, in] W^T, in float32 or wider; out is at least 16.
template <class T, int NV>
void linear_some(const T* x, const T* weights, typename Of<T>::C* y, int64_t n, int64_t in, int64_t out, int threads) {
    std::vector<T> rows(NV * W * in);
    std::copy(x, x + n * in, rows.begin());
    const Linear<T> l{weights, nullptr, nullptr, nullptr, nullptr, in, out, 0, 0};
#pragma omp parallel num_threads(threads)
    {
        std::vector<typename Item<T>::E> panel;
        turn<T, NV>(rows.data(), in, panel);
#pragma omp for schedule(dynamic, 16)
        for (int64_t block = 0; block < (out + W - 1) / W; block++) {
            // The last sixteen may overlap their neighbours, and come out the same.
            const int64_t o = std::min(block * W, out - W);
            typename Of<T>::C c[W * NV * W];
            outputs<T, NV>(l, o, panel.data(), nullptr, c);
            put<NV>(c, n, y + o, out);
        }
    }
}

template <class T>
void linear(const T* x, const T* weights, typename Of<T>::C* y, int64_t rows, int64_t in, int64_t out, int threads) {
    by_rows<T>(rows, [&](auto vectors, int64_t begin, int64_t n) {
        linear_some<T, vectors.value>(x + begin * in, weights, y + begin * out, n, in, out, threads);
    });
}

// A column of each row of z [rows, n]: the first of its largest numbers, or where the running sum of exp(z) reaches the
// share u of the whole sum. What is a hundred below the largest (and minus infinity) is never drawn: e^-100 < 1e-43.
template <class C> void draw(const C* z, const double* u, int64_t* out, int64_t rows, int64_t n, int threads) {
    using V = typename Of<C>::V;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const C* a = z + r * n;
        const auto part = [&](int64_t i) {
            return n - i >= W ? load(a + i) : load_some(a + i, int(n - i), -std::numeric_limits<C>::infinity());
        };
        V top = part(0);
        for (int64_t i = W; i < n; i += W) top = larger(top, part(i));
        const C most = largest(top), low = -100;
        out[r] = 0;  // stays where nothing is a number
        if (!u) {
            int64_t i = 0;
            while (largest(part(i)) < most) i += W;
            const C* found = std::find(a + i, a + n, most);
            if (found < a + n) out[r] = found - a;
            continue;
        }
        const auto weights = [&](int64_t i) {
            const V d = part(i) - most;
            const V e = exponential(d > low ? d : V{} + low);
            return d > low ? e : V{};
        };
        double whole = 0;
        for (int64_t i = 0; i < n; i += W) whole += double(sum(weights(i)));
        double left = u[r] * whole;
        for (int64_t i = 0; i < n; i += W) {
            const V e = weights(i);
            const double here = double(sum(e));
            if (here <= 0) continue;
            // Should rounding leave something behind the last number, the last one that may be drawn stands.
            for (int j = 0; j < W; j++)
                if (e[j] > 0) {
                    out[r] = i + j;
                    if (left < here && (left -= double(e[j])) < 0) break;
                }
            if (left < 0) break;
            left -= here;
        }
    }
}

}  // namespace luthier

using luthier::bf16;
#define DECODE(T, C, NAME)                                                                                             \
    extern "C" void decode_##NAME(const luthier::Step* s, const luthier::Layer<T>* layers, const luthier::Norm<T>* last, \
                                  T* x) {                                                                              \
        luthier::decode<T>(*s, layers, *last, x);                                                                       \
    }                                                                                                                  \
    extern "C" void linear_##NAME(const T* x, const T* w, C* y, int64_t rows, int64_t in, int64_t out, int threads) {   \
        luthier::linear<T>(x, w, y, rows, in, out, threads);                                                           \
    }
#define DRAW(C, NAME)                                                                                                  \
    extern "C" void draw_##NAME(const C* z, const double* u, int64_t* out, int64_t rows, int64_t n, int threads) {      \
        luthier::draw<C>(z, u, out, rows, n, threads);                                                                 \
    }
DECODE(bf16, float, bf16)
DECODE(float, float, f32)
DECODE(double, double, f64)
DRAW(float, f32)
DRAW(double, f64)
