// Attention over a packed row of documents, or of trees of segments, forward and backward, without a mask.
//
// A token attends to its own segment and to the segments above it, where positions allow. Blocks of scores are computed,
// used and forgotten (Dao, arXiv 2307.08691: online softmax forward; backward from the saved log-sum-exp). One task is one
// tree and one query head, so that no two tasks write the same memory and the result does not depend on the threads.
//
// Products run over panels of 64 columns. In bf16 two neighbouring values of the summed dimension share a 32-bit lane,
// as the processor's dot product wants them; `PAIR` is how many do.
#include "amx.h"

namespace luthier {

constexpr int PANEL = 64;  // columns of a block of scores
constexpr int MR = 6;      // rows of a register tile

#if defined(__AVX512BF16__)
typedef uint32_t Pair;
template <class T> struct Operand { using E = T; static constexpr int PAIR = 1; };
template <> struct Operand<bf16> { using E = Pair; static constexpr int PAIR = 2; };
inline F multiply(F acc, Pair a, U32 b) {
    return (F)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(int(a)), (__m512bh)b);
}
inline U32 load(const Pair* p) { return *(const U32*)p; }
#else
template <class T> struct Operand { using E = T; static constexpr int PAIR = 1; };
template <> struct Operand<bf16> { using E = float; static constexpr int PAIR = 1; };
#endif
inline F multiply(F acc, float a, F b) { return acc + a * b; }
inline D multiply(D acc, double a, D b) { return acc + a * b; }

// Rows of a block of scores, and vectors of columns that a product takes at least: whole tiles, where there are such.
template <class E> constexpr int BLOCK = 48;
template <class E> constexpr int STEP = 1;
#if defined(LUTHIER_TILES)
template <> constexpr int BLOCK<Pair> = 64;
template <> constexpr int STEP<Pair> = 2;
#endif

// C [R, 16 NV] (+)= A [R, K] B [K, 16 NV]; K counts elements of type E (pairs in bf16).
template <class E, class C, int R, int NV>
inline void tile(const E* A, int64_t lda, const E* B, int64_t ldb, C* c, int64_t ldc, int K, bool add) {
    using V = typename Of<C>::V;
    V acc[R][NV];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) acc[r][v] = add ? load(c + r * ldc + v * W) : V{};
    for (int k = 0; k < K; k++) {
        decltype(load(B)) b[NV];
        for (int v = 0; v < NV; v++) b[v] = load(B + k * ldb + v * W);
        for (int r = 0; r < R; r++) {
            const E a = A[r * lda + k];
            for (int v = 0; v < NV; v++) acc[r][v] = multiply(acc[r][v], a, b[v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < NV; v++) store(c + r * ldc + v * W, acc[r][v]);
}

template <class E, class C, int NV>
void product_of(const E* A, int64_t lda, const E* B, int64_t ldb, C* c, int64_t ldc, int M, int K, bool add) {
    int m = 0;
    for (; m + MR <= M; m += MR) tile<E, C, MR, NV>(A + m * lda, lda, B, ldb, c + m * ldc, ldc, K, add);
    switch (M - m) {
        case 5: tile<E, C, 5, NV>(A + m * lda, lda, B, ldb, c + m * ldc, ldc, K, add); break;
        case 4: tile<E, C, 4, NV>(A + m * lda, lda, B, ldb, c + m * ldc, ldc, K, add); break;
        case 3: tile<E, C, 3, NV>(A + m * lda, lda, B, ldb, c + m * ldc, ldc, K, add); break;
        case 2: tile<E, C, 2, NV>(A + m * lda, lda, B, ldb, c + m * ldc, ldc, K, add); break;
        case 1: tile<E, C, 1, NV>(A + m * lda, lda, B, ldb, c + m * ldc, ldc, K, add); break;
    }
}

template <class E, class C>
void product(const E* A, int64_t lda, const E* B, int64_t ldb, C* c, int64_t ldc, int M, int vectors, int K, bool add) {
#if defined(LUTHIER_TILES)
    if constexpr (std::is_same<E, Pair>::value)
        if (tiles() && K % W == 0 && vectors % 2 == 0) return tile_product(A, lda, B, ldb, c, ldc, M, vectors, K, add);
#endif
    for (; vectors >= 4; vectors -= 4, B += 4 * W, c += 4 * W) product_of<E, C, 4>(A, lda, B, ldb, c, ldc, M, K, add);
    switch (vectors) {
        case 3: product_of<E, C, 3>(A, lda, B, ldb, c, ldc, M, K, add); break;
        case 2: product_of<E, C, 2>(A, lda, B, ldb, c, ldc, M, K, add); break;
        case 1: product_of<E, C, 1>(A, lda, B, ldb, c, ldc, M, K, add); break;
    }
}

struct Shape {
    int64_t tokens, heads, kv_heads, size;
    int64_t q_stride, k_stride, v_stride, o_stride;  // from token to token; heads lie side by side
    int64_t segments;
    const int64_t *bounds, *parents, *starts;  // starts: position of each segment's first token
    double scale;
    int64_t window;  // 0: none
    int causal;
    double dropout;
    uint64_t seed;
    int threads;
};

// A tree: segments [first, last), rows [begin, end) of the packed row. Its segments are laid out in scratch memory from
// multiples of PANEL, at `at`.
struct Tree {
    int64_t first, last, begin, end, padded;
    double cost;
};

struct Plan {
    std::vector<Tree> trees;
    std::vector<int64_t> at;                   // by segment: where it lies in scratch memory
    std::vector<std::vector<int64_t>> chains;  // by segment: its ancestors and itself
};

inline Plan plan(const Shape& s) {
    Plan p;
    p.at.resize(s.segments);
    p.chains.resize(s.segments);
    for (int64_t i = 0; i < s.segments; i++) {
        const int64_t parent = s.parents ? s.parents[i] : -1, n = s.bounds[i + 1] - s.bounds[i];
        if (parent < 0) p.trees.push_back({i, i + 1, s.bounds[i], s.bounds[i + 1], 0, 0});
        else p.chains[i] = p.chains[parent];
        p.chains[i].push_back(i);
        Tree& tree = p.trees.back();
        tree.last = i + 1;
        tree.end = s.bounds[i + 1];
        p.at[i] = tree.padded;
        tree.padded += up<int64_t>(n, PANEL);
        tree.cost += double(n) * double(s.starts[i] + n);
    }
    // Longest first, so that no thread begins the longest task last.
    std::stable_sort(p.trees.begin(), p.trees.end(), [](const Tree& a, const Tree& b) { return a.cost > b.cost; });
    return p;
}

// The allowed columns [low, high) of a row, among n columns whose first has position `first`. Forward, a row is a query
// and columns are keys; backward, a row is a key and columns are queries.
struct Span {
    int low, high;
};
inline Span keys_of(const Shape& s, int64_t position, int64_t first, int n) {
    int64_t low = 0, high = n;
    if (s.causal) high = std::min<int64_t>(high, position - first + 1);
    if (s.window) {
        low = std::max<int64_t>(low, position - s.window + 1 - first);
        if (!s.causal) high = std::min<int64_t>(high, position + s.window - first);
    }
    return {int(std::clamp<int64_t>(low, 0, n)), int(std::clamp<int64_t>(high, 0, n))};
}
inline Span queries_of(const Shape& s, int64_t position, int64_t first, int n) {
    int64_t low = 0, high = n;
    if (s.causal) low = std::max<int64_t>(low, position - first);
    if (s.window) {
        high = std::min<int64_t>(high, position + s.window - first);
        if (!s.causal) low = std::max<int64_t>(low, position - s.window + 1 - first);
    }
    return {int(std::clamp<int64_t>(low, 0, n)), int(std::clamp<int64_t>(high, 0, n))};
}

// `pair` rows of x interleaved, sixteen columns of them; rows from `n` on count as zeros.
template <class T, class E> inline void interleaved(const T* row, int64_t stride, int64_t n, E* out) {
    for (int d = 0; d < W; d++) out[d] = n > 0 ? E(widen(row[d])) : E{};
}
#if defined(__AVX512BF16__)
template <> inline void interleaved<bf16, Pair>(const bf16* row, int64_t stride, int64_t n, Pair* out) {
    U32 a{}, b{};
    if (n > 0) a = __builtin_convertvector(*(const U16*)row, U32);
    if (n > 1) b = __builtin_convertvector(*(const U16*)(row + stride), U32);
    *(U32*)out = a | b << 16;
}
#endif

// out[d * ld + i] = in[i * step + d] for sixteen i (zeros from `n` on) and `k` of d, sixteen at most.
template <class E> inline void turned(const E* in, int64_t step, int64_t n, int64_t k, E* out, int64_t ld) {
    if (sizeof(E) == 4 && k >= W) {
        U32 r[W];
        for (int i = 0; i < W; i++) r[i] = i < n ? *(const U32*)(in + i * step) : U32{};
        transpose(r);
        for (int d = 0; d < W; d++) *(U32*)(out + d * ld) = r[d];
    } else
        for (int d = 0; d < std::min<int64_t>(k, W); d++)
            for (int i = 0; i < W; i++) out[d * ld + i] = i < n ? in[i * step + d] : E{};
}

// The rows themselves as operands: in place where two values lie side by side already.
template <class T, class E> inline const E* rows_as(const T* x, int64_t stride, int64_t, std::vector<E>&, int64_t& ld,
                                                    int64_t) {
    static_assert(sizeof(E) == sizeof(T) || sizeof(E) == 2 * sizeof(T), "");
    ld = stride * int64_t(sizeof(T)) / int64_t(sizeof(E));
    return (const E*)x;
}
#if !defined(__AVX512BF16__)
template <> inline const float* rows_as<bf16, float>(const bf16* x, int64_t stride, int64_t n, std::vector<float>& room,
                                                     int64_t& ld, int64_t size) {
    float* o = scratch(room, size_t(n) * size);
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < size; d++) o[i * size + d] = widen(x[i * stride + d]);
    ld = size;
    return o;
}
#endif

// Columns as columns: [padded / PANEL][size / PAIR][PANEL], column j of a panel being token j of the tree.
template <class T, class E>
void pack_columns(const Shape& s, const Plan& p, const Tree& t, const T* x, int64_t stride, E* out, std::vector<E>& room) {
    const int64_t depth = s.size / Operand<T>::PAIR;
    for (int64_t g = t.first; g < t.last; g++)
        for (int64_t i = 0, n = s.bounds[g + 1] - s.bounds[g], full = up<int64_t>(n, W * STEP<E>); i < full; i += W) {
            const int64_t place = p.at[g] + i, m = std::clamp<int64_t>(n - i, 0, W);
            E* o = out + place / PANEL * PANEL * depth + place % PANEL;
            int64_t step;
            const E* rows = rows_as<T, E>(x + (s.bounds[g] + i) * stride, stride, m, room, step, s.size);
            for (int64_t d = 0; d < depth; d += W) turned(rows + d, step, m, depth - d, o + d * PANEL, PANEL);
        }
}

// Rows as rows, PAIR of them interleaved: [padded / PAIR][size].
template <class T, class E>
void pack_rows(const Shape& s, const Plan& p, const Tree& t, const T* x, int64_t stride, E* out) {
    constexpr int PAIR = Operand<T>::PAIR;
    for (int64_t g = t.first; g < t.last; g++) {
        const int64_t n = s.bounds[g + 1] - s.bounds[g], full = up<int64_t>(n, PANEL);
        for (int64_t i = 0; i < full; i += PAIR) {
            const T* row = x + (s.bounds[g] + i) * stride;
            E* o = out + (p.at[g] + i) / PAIR * s.size;
            for (int64_t d = 0; d < s.size; d += W) interleaved(row + d, stride, n - i, o + d);
        }
    }
}

// The matrix with tokens along its rows: [size][padded / PAIR].
template <class T, class E>
void pack_transposed(const Shape& s, const Plan& p, const Tree& t, const T* x, int64_t stride, E* out) {
    constexpr int PAIR = Operand<T>::PAIR;
    const int64_t width = t.padded / PAIR;
    E square[W * W];
    for (int64_t g = t.first; g < t.last; g++) {
        const int64_t n = s.bounds[g + 1] - s.bounds[g], full = up<int64_t>(n, PANEL);
        for (int64_t i = 0; i < full; i += W * PAIR)
            for (int64_t d = 0; d < s.size; d += W) {
                for (int j = 0; j < W; j++) {
                    const int64_t at = i + j * PAIR;
                    interleaved(x + (s.bounds[g] + at) * stride + d, stride, n - at, square + j * W);
                }
                turned(square, W, W, W, out + d * width + (p.at[g] + i) / PAIR, width);
            }
    }
}

// Writes a vector of scores as an operand of the next product.
inline void put(F v, float* p) { store(p, v); }
inline void put(D v, double* p) { store(p, v); }
#if defined(__AVX512BF16__)
inline void put(F v, Pair* p) { store((bf16*)p, v); }
#endif

template <class T>
void forward(const Shape& s, const T* q, const T* k, const T* v, T* out, typename Of<T>::C* lse) {
    using C = typename Of<T>::C;
    using V = typename Of<C>::V;
    using I = typename Of<C>::I;
    using E = typename Operand<T>::E;
    constexpr int PAIR = Operand<T>::PAIR, BLOCK = luthier::BLOCK<E>, STEP = luthier::STEP<E>;
    const Plan p = plan(s);
    const int64_t group = s.heads / s.kv_heads, depth = s.size / PAIR;
    const int dv = int(s.size / W), width = PANEL / PAIR;
    const Drop drop(s.dropout, s.seed);
    const C scale = C(s.scale);
    const I lane = lanes<I>();
#pragma omp parallel num_threads(s.threads)
    {
        const Tiles held{};
        std::vector<E> columns, rows, room;
        alignas(64) C scores[BLOCK * PANEL];
        alignas(64) E weights[BLOCK * PANEL];
        std::vector<C> total(BLOCK * s.size);
        C top[BLOCK], norm[BLOCK];
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < int64_t(p.trees.size()) * s.heads; task++) {
            const Tree& t = p.trees[task / s.heads];
            const int64_t h = task % s.heads, g = h / group;
            E* kc = scratch(columns, size_t(t.padded) * depth);
            E* vr = scratch(rows, size_t(t.padded) / PAIR * s.size);
            pack_columns<T, E>(s, p, t, k + g * s.size, s.k_stride, kc, room);
            pack_rows<T, E>(s, p, t, v + g * s.size, s.v_stride, vr);
            for (int64_t a = t.first; a < t.last; a++)
                for (int64_t i0 = s.bounds[a]; i0 < s.bounds[a + 1]; i0 += BLOCK) {
                    const int m = int(std::min<int64_t>(BLOCK, s.bounds[a + 1] - i0));
                    const int64_t position = s.starts[a] + i0 - s.bounds[a];
                    int64_t lda;
                    const E* A = rows_as<T, E>(q + i0 * s.q_stride + h * s.size, s.q_stride, m, room, lda, s.size);
                    std::fill(total.begin(), total.end(), C(0));
                    std::fill(top, top + m, -std::numeric_limits<C>::max());
                    std::fill(norm, norm + m, C(0));
                    for (int64_t c : p.chains[a])
                        for (int64_t j0 = 0, n = s.bounds[c + 1] - s.bounds[c]; j0 < n; j0 += PANEL) {
                            const int cols = int(std::min<int64_t>(PANEL, n - j0));
                            const int64_t first = s.starts[c] + j0;
                            // Rows are in the order of positions: the last sees furthest, the first least far back.
                            const Span near = keys_of(s, position + m - 1, first, cols);
                            const Span far = keys_of(s, position, first, cols);
                            const int low = std::min(near.low, far.low), high = std::max(near.high, far.high);
                            if (low >= high) continue;
                            // What no row sees is not computed: the first rows, columns on either side.
                            const int r0 = s.causal ? int(std::clamp<int64_t>(first - position, 0, m)) : 0;
                            const int u0 = down(low / W, STEP), u1 = up((high + W - 1) / W, STEP);
                            const int64_t place = p.at[c] + j0;
                            product<E, C>(A + r0 * lda, lda, kc + place * depth + u0 * W, PANEL,
                                          scores + r0 * PANEL + u0 * W, PANEL, m - r0, u1 - u0, int(depth), false);
                            for (int r = r0; r < m; r++) {
                                const Span span = keys_of(s, position + r, first, cols);
                                C* x = scores + r * PANEL;
                                E* w = weights + r * width;
                                V high = V{} - std::numeric_limits<C>::max(), z[PANEL / W];
                                for (int u = u0; u < u1; u++) {
                                    z[u] = load(x + u * W) * scale;
                                    if (span.low > u * W || span.high < (u + 1) * W) {
                                        const I j = lane + u * W;
                                        z[u] = (j >= span.low) & (j < span.high)
                                                   ? z[u]
                                                   : V{} - std::numeric_limits<C>::max();
                                    }
                                    high = larger(high, z[u]);
                                }
                                const C best = std::max(top[r], largest(high));
                                if (best > top[r]) {
                                    const C shrink = std::exp(top[r] - best);
                                    top[r] = best;
                                    norm[r] *= shrink;
                                    for (int d = 0; d < dv; d++) {
                                        C* o = total.data() + r * s.size + d * W;
                                        store(o, load(o) * shrink);
                                    }
                                }
                                V sums{};
                                for (int u = u0; u < u1; u++) {
                                    V e = exponential(z[u] - best);
                                    if (span.low > u * W || span.high < (u + 1) * W) {
                                        const I j = lane + u * W;
                                        e = (j >= span.low) & (j < span.high) ? e : V{};
                                    }
                                    sums += e;
                                    if (drop)  // counted by (head, query, key)
                                        e = drop.apply<I>(e, (h * s.tokens + i0 + r) * s.tokens + s.bounds[c] + j0 + u * W);
                                    put(e, w + u * W / PAIR);
                                }
                                norm[r] += sum(sums);
                            }
                            product<E, C>(weights + r0 * width + u0 * W / PAIR, width,
                                          vr + (place + u0 * W) / PAIR * s.size, s.size, total.data() + r0 * s.size,
                                          s.size, m - r0, dv, (u1 - u0) * W / PAIR, true);
                        }
                    for (int r = 0; r < m; r++) {
                        T* o = out + (i0 + r) * s.o_stride + h * s.size;
                        const C inverse = 1 / norm[r];
                        for (int d = 0; d < dv; d++) store(o + d * W, load(total.data() + r * s.size + d * W) * inverse);
                        lse[h * s.tokens + i0 + r] = top[r] + std::log(norm[r]);
                    }
                }
        }
    }
}

template <class T>
void backward(const Shape& s, const T* q, const T* k, const T* v, const T* out, const typename Of<T>::C* lse,
              const T* grad, T* dq, T* dk, T* dv, typename Of<T>::C* partial) {
    using C = typename Of<T>::C;
    using V = typename Of<C>::V;
    using I = typename Of<C>::I;
    using E = typename Operand<T>::E;
    constexpr int PAIR = Operand<T>::PAIR, BLOCK = luthier::BLOCK<E>, STEP = luthier::STEP<E>;
    const Plan p = plan(s);
    const int64_t group = s.heads / s.kv_heads, depth = s.size / PAIR, kv_size = s.kv_heads * s.size;
    const int vs = int(s.size / W), width = PANEL / PAIR;
    const Drop drop(s.dropout, s.seed);
    const C scale = C(s.scale);
    const I lane = lanes<I>();
    // partial: float sums of dk and dv for each query head, [2, heads, tokens, size].
    C *sum_k = partial, *sum_v = partial + s.heads * s.tokens * s.size;
#pragma omp parallel num_threads(s.threads)
    {
        const Tiles held{};
        std::vector<E> qc, gc, qr, gr, kt, room_k, room_v;
        std::vector<C> dqt(s.size * PANEL), dots;
        alignas(64) C scores[BLOCK * PANEL], slopes[BLOCK * PANEL];
        alignas(64) E weights[BLOCK * PANEL], deltas[BLOCK * PANEL], pairs[BLOCK * PANEL];
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < int64_t(p.trees.size()) * s.heads; task++) {
            const Tree& t = p.trees[task / s.heads];
            const int64_t h = task % s.heads, g = h / group, columns = h * s.size;
            E *QC = scratch(qc, size_t(t.padded) * depth), *GC = scratch(gc, size_t(t.padded) * depth);
            E *QR = scratch(qr, size_t(t.padded) / PAIR * s.size), *GR = scratch(gr, size_t(t.padded) / PAIR * s.size);
            E* KT = scratch(kt, size_t(t.padded) / PAIR * s.size);
            pack_columns<T, E>(s, p, t, q + columns, s.q_stride, QC, room_k);
            pack_columns<T, E>(s, p, t, grad + columns, s.o_stride, GC, room_k);
            pack_rows<T, E>(s, p, t, q + columns, s.q_stride, QR);
            pack_rows<T, E>(s, p, t, grad + columns, s.o_stride, GR);
            pack_transposed<T, E>(s, p, t, k + g * s.size, s.k_stride, KT);
            C* D = scratch(dots, size_t(t.end - t.begin) + W);
            for (int64_t i = t.begin; i < t.end; i++) {
                V d{};
                for (int u = 0; u < vs; u++)
                    d += load(out + i * s.o_stride + columns + u * W) * load(grad + i * s.o_stride + columns + u * W);
                D[i - t.begin] = sum(d);
            }
            C *SK = sum_k + h * s.tokens * s.size, *SV = sum_v + h * s.tokens * s.size;
            std::memset(SK + t.begin * s.size, 0, (t.end - t.begin) * s.size * sizeof(C));
            std::memset(SV + t.begin * s.size, 0, (t.end - t.begin) * s.size * sizeof(C));
            const C* L = lse + h * s.tokens;
            for (int64_t a = t.first; a < t.last; a++)
                for (int64_t b = 0, na = s.bounds[a + 1] - s.bounds[a]; b < na; b += PANEL) {
                    const int64_t i0 = s.bounds[a] + b, position = s.starts[a] + b, here = p.at[a] + b;
                    const int cols = int(std::min<int64_t>(PANEL, na - b)), nv = up((cols + W - 1) / W, STEP);
                    std::fill(dqt.begin(), dqt.end(), C(0));
                    V shift[PANEL / W], dot[PANEL / W];
                    for (int u = 0; u < nv; u++) {
                        const int n = std::clamp(cols - u * W, 0, W);
                        shift[u] = load_some(L + i0 + u * W, n);
                        dot[u] = load_some(D + i0 - t.begin + u * W, n);
                    }
                    for (int64_t c : p.chains[a])
                        for (int64_t j0 = 0, n = s.bounds[c + 1] - s.bounds[c]; j0 < n; j0 += BLOCK) {
                            const int64_t key = s.bounds[c] + j0, first = s.starts[c] + j0;
                            int m = int(std::min<int64_t>(BLOCK, n - j0));
                            if (s.causal) m = int(std::min<int64_t>(m, position + cols - first));
                            if (m <= 0) break;
                            const Span near = queries_of(s, first, position, cols);
                            const Span far = queries_of(s, first + m - 1, position, cols);
                            const int low = std::min(near.low, far.low), high = std::max(near.high, far.high);
                            if (low >= high) continue;
                            const int u0 = down(low / W, STEP), u1 = up((high + W - 1) / W, STEP), skip = u0 * W;
                            int64_t ldk, ldv;
                            const E* KA = rows_as<T, E>(k + key * s.k_stride + g * s.size, s.k_stride, m, room_k, ldk, s.size);
                            const E* VA = rows_as<T, E>(v + key * s.v_stride + g * s.size, s.v_stride, m, room_v, ldv, s.size);
                            product<E, C>(KA, ldk, QC + here * depth + skip, PANEL, scores + skip, PANEL, m, u1 - u0,
                                          int(depth), false);
                            product<E, C>(VA, ldv, GC + here * depth + skip, PANEL, slopes + skip, PANEL, m, u1 - u0,
                                          int(depth), false);
                            for (int r = 0; r < m; r++) {
                                const Span span = queries_of(s, first + r, position, cols);
                                for (int u = u0; u < u1; u++) {
                                    V e = exponential(load(scores + r * PANEL + u * W) * scale - shift[u]);
                                    V x = load(slopes + r * PANEL + u * W);
                                    if (span.low > u * W || span.high < (u + 1) * W) {
                                        const I i = lane + u * W;
                                        e = (i >= span.low) & (i < span.high) ? e : V{};
                                    }
                                    V w = e;
                                    if (drop) {
                                        const uint64_t counter = (h * s.tokens + i0 + u * W) * s.tokens + key + r;
                                        w = drop.apply<I>(w, counter, s.tokens);
                                        x = drop.apply<I>(x, counter, s.tokens);
                                    }
                                    const V d = e * (x - dot[u]) * scale;
                                    put(w, weights + r * width + u * W / PAIR);
                                    put(d, deltas + r * width + u * W / PAIR);
                                    if constexpr (PAIR == 2) {  // rows 2a and 2a + 1 in one lane, for dq
                                        U32* o = (U32*)((uint32_t*)pairs + r / 2 * PANEL + u * W);
                                        const U32 bits = rounded_bits((F)d);
                                        *o = r % 2 ? *o | bits << 16 : bits;
                                    }
                                }
                            }
                            const int deep = int(up<int64_t>((m + PAIR - 1) / PAIR, STEP == 2 ? W : 1));
                            if (PAIR == 2) std::fill(pairs + (m + 1) / 2 * PANEL, pairs + deep * PANEL, E{});
                            const int kp = (u1 - u0) * W / PAIR, shared = skip / PAIR;
                            const int64_t from = (here + skip) / PAIR * s.size;
                            product<E, C>(weights + shared, width, GR + from, s.size, SV + key * s.size, s.size, m, vs,
                                          kp, true);
                            product<E, C>(deltas + shared, width, QR + from, s.size, SK + key * s.size, s.size, m, vs,
                                          kp, true);
                            const E* right = (PAIR == 2 ? pairs : deltas) + skip;
                            product<E, C>(KT + (p.at[c] + j0) / PAIR, t.padded / PAIR, right, PANEL,
                                          dqt.data() + skip, PANEL, int(s.size), u1 - u0, deep, true);
                        }
                    for (int i = 0; i < cols; i += W)
                        for (int d = 0; d < s.size; d += W) {
                            C square[W * W];
                            turned(dqt.data() + d * PANEL + i, PANEL, W, W, square, W);
                            for (int r = 0; r < std::min(W, cols - i); r++)
                                store(dq + ((i0 + i + r) * s.heads + h) * s.size + d, load(square + r * W));
                        }
                }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < s.tokens; i++)
            for (int64_t g = 0; g < s.kv_heads; g++)
                for (int u = 0; u < vs; u++) {
                    V a{}, b{};
                    for (int64_t h = g * group; h < (g + 1) * group; h++) {
                        a += load(sum_k + (h * s.tokens + i) * s.size + u * W);
                        b += load(sum_v + (h * s.tokens + i) * s.size + u * W);
                    }
                    store(dk + i * kv_size + g * s.size + u * W, a);
                    store(dv + i * kv_size + g * s.size + u * W, b);
                }
    }
}

}  // namespace luthier

using luthier::bf16;
using luthier::Shape;
#define ATTENTION(T, C, NAME)                                                                                          \
    extern "C" void attention_##NAME(const Shape* s, const T* q, const T* k, const T* v, T* out, C* lse) {              \
        luthier::forward<T>(*s, q, k, v, out, lse);                                                                    \
    }                                                                                                                  \
    extern "C" void attention_backward_##NAME(const Shape* s, const T* q, const T* k, const T* v, const T* out,         \
                                              const C* lse, const T* grad, T* dq, T* dk, T* dv, C* partial) {           \
        luthier::backward<T>(*s, q, k, v, out, lse, grad, dq, dk, dv, partial);                                        \
    }
ATTENTION(bf16, float, bf16)
ATTENTION(float, float, f32)
ATTENTION(double, double, f64)
