// Matrix products of a linear layer and its low-rank update in bf16 with sums in float32, in the processor's matrix tiles
// (AMX) or by its dot products of pairs (AVX512-BF16).
//
// A product is cut into blocks of 32 columns. Threads share the columns; each lays 32 of them out in pairs and runs over
// rows that fit into its own cache. The update is a few more steps of the same sums: y = [x, x A] [W, B]. Nothing is
// compiled for a shape, and no weight is kept twice.
#include "amx.h"

namespace luthier {

#if defined(__AVX512BF16__)

constexpr int64_t SIDE = 32;                 // columns of a block, and of the summed dimension in a step
constexpr int64_t STEP_WORDS = 2 * W * W;    // a step's two tiles of columns, in pairs

// A matrix [depth, columns] of which the summed dimension lies along rows, or, `turned`, along columns.
struct Matrix {
    const bf16* data;
    int64_t stride;
    bool turned;
    int64_t depth, columns;
    uint16_t bits(int64_t k, int64_t n) const {
        return k < depth && n < columns ? data[turned ? n * stride + k : k * stride + n].bits : 0;
    }
    // Sixteen pairs of rows from k on, sixteen columns from n on.
    void tile(int64_t k, int64_t n, uint32_t* out) const {
        if (k + SIDE > depth || n + W > columns) {
            for (int i = 0; i < W; i++)
                for (int j = 0; j < W; j++) out[i * W + j] = bits(k + 2 * i, n + j) | uint32_t(bits(k + 2 * i + 1, n + j)) << 16;
        } else if (turned) {
            U32 r[W];
            for (int j = 0; j < W; j++) r[j] = *(const U32*)(data + (n + j) * stride + k);
            transpose(r);
            for (int i = 0; i < W; i++) *(U32*)(out + i * W) = r[i];
        } else
            for (int i = 0; i < W; i++) {
                const bf16* row = data + (k + 2 * i) * stride + n;
                const U32 a = __builtin_convertvector(*(const U16*)row, U32);
                const U32 b = __builtin_convertvector(*(const U16*)(row + stride), U32);
                *(U32*)(out + i * W) = a | b << 16;
            }
    }
    // Asks for a part of what columns n to n + 31 will be laid out from: rounds [from, to) of `all`.
    void ask(int64_t n, int64_t from, int64_t to, int64_t all) const {
        if (n + SIDE > columns) return;
        const int64_t in_row = depth / SIDE;
        for (int64_t line = depth * from / all; line < depth * to / all; line++)
            __builtin_prefetch(turned ? data + (n + line / in_row) * stride + line % in_row * SIDE : data + line * stride + n);
    }
    // Columns n to n + 31, step after step.
    void panel(int64_t n, uint32_t* out) const {
        for (int64_t k = 0; k < depth; k += SIDE, out += STEP_WORDS) {
            tile(k, n, out);
            tile(k, n + W, out + W * W);
        }
    }
};

// What computes blocks: c [ROWS, 32] = rows [ROWS, depth] panel + more rows [ROWS, more depth] of the panel behind, which
// begins with a step of its own. Of the last step DEPTH is the least that is summed; CACHED are the bytes of rows that are
// run over again for each 32 columns.
#if defined(LUTHIER_TILES)
struct InTiles {
    static constexpr int64_t ROWS = 32, DEPTH = SIDE, CACHED = 1 << 20;
    const Tiles held{};
    InTiles() { shaped().shape(0); }
    // Two tiles of rows times two of columns.
    template <bool HALF>
    static void block(const bf16* rows, int64_t stride, int64_t depth, const bf16* more, int64_t more_stride,
                      int64_t more_depth, const uint32_t* panel, float* c) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        const auto add = [&](const bf16* a, int64_t ld, int64_t deep) {
            for (int64_t k = 0; k < deep; k += SIDE, a += SIDE, panel += STEP_WORDS) {
                _tile_loadd(6, panel, 64);
                _tile_loadd(4, a, ld * 2);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, panel + W * W, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a + W * ld, ld * 2);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        };
        add(rows, stride, depth);
        add(more, more_stride, more_depth);
        _tile_stored(0, c, SIDE * 4);
        _tile_stored(1, c + W, SIDE * 4);
        _tile_stored(2, c + W * SIDE, SIDE * 4);
        _tile_stored(3, c + W * SIDE + W, SIDE * 4);
    }
    // c [16, 32] = rows [16, depth] panel.
    static void sixteen(const bf16* rows, int64_t depth, const uint32_t* panel, float* c) {
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t k = 0; k < depth; k += SIDE, rows += SIDE, panel += STEP_WORDS) {
            _tile_loadd(4, rows, depth * 2);
            _tile_loadd(6, panel, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, panel + W * W, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, c, SIDE * 4);
        _tile_stored(1, c + W, SIDE * 4);
    }
};
#endif

struct InPairs {
    static constexpr int64_t ROWS = 8, DEPTH = 2, CACHED = 1 << 22;
    // Sixteen sums hide the latency of a dot product. With HALF only the first sixteen columns are wanted.
    template <bool HALF>
    static void block(const bf16* rows, int64_t stride, int64_t depth, const bf16* more, int64_t more_stride,
                      int64_t more_depth, const uint32_t* panel, float* c) {
        constexpr int VECTORS = HALF ? 1 : 2;
        F sums[ROWS][VECTORS];
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECTORS; v++) sums[r][v] = F{};
        const auto add = [&](const bf16* data, int64_t ld, int64_t deep) {
            const char* a = (const char*)data;
            for (int64_t k = 0; k < deep; k += SIDE, panel += STEP_WORDS)
                for (int64_t i = 0, pairs = std::min(SIDE, deep - k) / 2; i < pairs; i++, a += 4) {
                    U32 b[VECTORS];
                    for (int v = 0; v < VECTORS; v++) b[v] = *(const U32*)(panel + v * W * W + i * W);
                    for (int r = 0; r < ROWS; r++) {
                        int pair;
                        std::memcpy(&pair, a + r * ld * 2, 4);
                        for (int v = 0; v < VECTORS; v++)
                            sums[r][v] = (F)_mm512_dpbf16_ps((__m512)sums[r][v], (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b[v]);
                    }
                }
        };
        add(rows, stride, depth);
        add(more, more_stride, more_depth);
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECTORS; v++) store(c + r * SIDE + v * W, sums[r][v]);
    }
    static void sixteen(const bf16* rows, int64_t depth, const uint32_t* panel, float* c) {
        for (int64_t r = 0; r < W; r += ROWS)
            block<false>(rows + r * depth, depth, depth, nullptr, 0, 0, panel, c + r * SIDE);
    }
};

// Scratch memory from the start of a cache line on: a tile's row is one, and one that lies across two is read twice.
template <class E> struct Lines {
    struct alignas(64) Line { char bytes[64]; };
    std::vector<Line> lines;
    explicit Lines(int64_t n) : lines(size_t(n * int64_t(sizeof(E)) / 64 + 1)) {}
    E* data() { return (E*)lines.data(); }
};

// Rows of a matrix by blocks; the last ones stand in a copy that zeros fill up.
template <class In> struct Rows {
    const bf16* data;
    int64_t rows, stride;
    std::vector<bf16> last;
    Rows(const bf16* data, int64_t rows, int64_t stride) : data(data), rows(rows), stride(stride) {
        const int64_t left = rows % In::ROWS;
        if (!left) return;
        last.assign(In::ROWS * stride, bf16{0});
        std::copy(data + (rows - left) * stride, data + rows * stride, last.begin());
    }
    const bf16* at(int64_t m) const { return m + In::ROWS <= rows ? data + m * stride : last.data(); }
};

// y [M, N] (+)= x [M, K] w + (x first) second + bias; low [M, rank] = x first, rounded. K is a multiple of 32, N of 16.
template <class In>
void product(const bf16* x, int64_t M, const Matrix& w, const Matrix& first, const Matrix& second, const bf16* bias,
             bf16* low, bf16* y, bool add, int threads) {
    constexpr int64_t ROWS = In::ROWS;
    const int64_t K = w.depth, N = w.columns, rank = low ? first.columns : 0, wide = up(rank, SIDE);
    const int64_t steps = K / SIDE, more = up(rank, In::DEPTH), padded = up(M, ROWS);
    const Rows<In> rows(x, M, K);
    Lines<bf16> lows(padded * wide);
    const int64_t parts = std::max<int64_t>(1, (M * K * 2 + In::CACHED - 1) / In::CACHED);
    const int64_t part = up((M + parts - 1) / parts, ROWS);
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const In held{};
        alignas(64) float c[ROWS * SIDE];
        Lines<uint32_t> panel((steps + wide / SIDE) * STEP_WORDS);
        for (int64_t r = 0; r < rank; r += SIDE) {
            first.panel(r, panel.data());
            const int64_t columns = std::min(SIDE, rank - r);
            const auto block = columns <= W ? In::template block<true> : In::template block<false>;
            std::fill(c, c + ROWS * SIDE, 0.f);
#pragma omp for schedule(static) nowait
            for (int64_t m = 0; m < padded; m += ROWS) {
                block(rows.at(m), K, K, nullptr, 0, 0, panel.data(), c);
                for (int64_t i = 0; i < ROWS; i++)
                    for (int64_t j = 0; j < SIDE; j += W) store(lows.data() + (m + i) * wide + r + j, load(c + i * SIDE + j));
                for (int64_t i = 0; i < std::min(ROWS, M - m); i++)
                    std::copy_n(lows.data() + (m + i) * wide + r, columns, low + (m + i) * rank + r);
            }
        }
#pragma omp barrier
        for (int64_t top = 0; top < M; top += part) {
            const int64_t bottom = std::min(M, top + part);
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t n = 0; n < N; n += SIDE) {
                w.panel(n, panel.data());
                if (rank) second.panel(n, panel.data() + steps * STEP_WORDS);
                for (int64_t m = top; m < bottom; m += ROWS) {
                    // The weights come from main memory, once for each product.
                    w.ask(n + threads * SIDE, m - top, std::min(m + ROWS, bottom) - top, bottom - top);
                    In::template block<false>(rows.at(m), K, K, lows.data() + m * wide, wide, more, panel.data(), c);
                    for (int64_t i = 0; i < std::min(ROWS, M - m); i++)
                        for (int64_t j = 0; j < std::min(SIDE, N - n); j += W) {
                            bf16* o = y + (m + i) * N + n + j;
                            F value = load(c + i * SIDE + j);
                            if (bias) value += load(bias + n + j);
                            store(o, add ? load(o) + value : value);
                        }
                }
            }
        }
    }
}

// out [rank, N] = small^T big, float32: small [M, rank], big [M, N], N a multiple of 16. Summed over rows.
template <class In>
void gram(const bf16* small, int64_t rank, const bf16* big, int64_t N, int64_t M, float* out, int threads) {
    const int64_t depth = up(M, SIDE);
    Lines<bf16> turned(up<int64_t>(rank, W) * depth);
    const Matrix left{small, rank, false, M, rank}, right{big, N, false, M, N};
    for (int64_t m = 0; m < M; m += SIDE)
        for (int64_t r = 0; r < rank; r += W) {
            U32 pairs[W];
            left.tile(m, r, (uint32_t*)pairs);
            transpose(pairs);
            for (int i = 0; i < W; i++) *(U32*)(turned.data() + (r + i) * depth + m) = pairs[i];
        }
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const In held{};
        alignas(64) float c[W * SIDE];
        Lines<uint32_t> panel(depth / SIDE * STEP_WORDS);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t n = 0; n < N; n += SIDE) {
            right.panel(n, panel.data());
            for (int64_t r = 0; r < rank; r += W) {
                In::sixteen(turned.data() + r * depth, depth, panel.data(), c);
                for (int64_t i = 0; i < std::min<int64_t>(W, rank - r); i++)
                    std::copy_n(c + i * SIDE, std::min(SIDE, N - n), out + (r + i) * N + n);
            }
        }
    }
}

template <class In> struct Named { using type = In; };

// Calls `run` with the name of what this processor computes blocks in.
template <class Run> void fastest(const Run& run) {
#if defined(LUTHIER_TILES)
    if (tiles()) return run(Named<InTiles>{});
#endif
    run(Named<InPairs>{});
}

#endif

}  // namespace luthier

using luthier::bf16;

// Whether there are products at all.
extern "C" int products_given() {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

// x [M, K]; turned: w [N, K], first [rank, K], second [N, rank]; else w [K, N], first [K, rank], second [rank, N].
extern "C" void product_bf16(const bf16* x, const bf16* w, const bf16* first, const bf16* second, const bf16* bias, bf16* low,
                             bf16* y, int64_t M, int64_t K, int64_t N, int64_t rank, int turned, int add, int threads) {
#if defined(__AVX512BF16__)
    using luthier::Matrix;
    const bool t = turned;
    luthier::fastest([&](auto in) {
        luthier::product<typename decltype(in)::type>(x, M, Matrix{w, t ? K : N, t, K, N},
                                                      Matrix{first, t ? K : rank, t, K, rank},
                                                      Matrix{second, t ? rank : N, t, rank, N}, bias, low, y, add, threads);
    });
#endif
}

// out [rank, N] = small [M, rank]^T big [M, N].
extern "C" void gram_bf16(const bf16* small, const bf16* big, float* out, int64_t rank, int64_t N, int64_t M, int threads) {
#if defined(__AVX512BF16__)
    luthier::fastest([&](auto in) { luthier::gram<typename decltype(in)::type>(small, rank, big, N, M, out, threads); });
#endif
}
