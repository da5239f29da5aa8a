// Matrix products of a linear layer and its low-rank update in the processor's matrix tiles, in bf16 with sums in float32.
//
// A product is cut into blocks of 32 x 32 results: two tiles of rows times two of columns, four sums. Threads share the
// columns; each lays 32 of them out as the tiles want them and runs over rows that fit into its own cache. The update is a
// few more steps of the same sums: y = [x, x A] [W, B]. Nothing is compiled for a shape, and no weight is kept twice.
#include "amx.h"

namespace luthier {

#if defined(LUTHIER_TILES)

constexpr int64_t SIDE = 32;                 // rows and columns of a block, and of the summed dimension in a step
constexpr int64_t STEP_WORDS = 2 * W * W;    // a step's two tiles of columns, in pairs
constexpr int64_t CACHED_BYTES = 1 << 20;    // of rows that are run over again for each 32 columns

inline int64_t steps_of(int64_t n) { return (n + SIDE - 1) / SIDE; }

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
    // Columns n to n + 31, step after step.
    void panel(int64_t n, uint32_t* out) const {
        for (int64_t k = 0; k < depth; k += SIDE, out += STEP_WORDS) {
            tile(k, n, out);
            tile(k, n + W, out + W * W);
        }
    }
};

inline void shape_whole() { shaped().shape(0); }

// c [32, 32] = rows [32, 32 steps] panel + more rows [32, 32 more steps] of the panel behind.
inline void block(const bf16* rows, int64_t stride, int64_t steps, const bf16* more, int64_t more_stride,
                  int64_t more_steps, const uint32_t* panel, float* c) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const auto add = [&](const bf16* a, int64_t ld, int64_t count) {
        for (int64_t s = 0; s < count; s++, a += SIDE, panel += STEP_WORDS) {
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
    add(rows, stride, steps);
    add(more, more_stride, more_steps);
    _tile_stored(0, c, SIDE * 4);
    _tile_stored(1, c + W, SIDE * 4);
    _tile_stored(2, c + W * SIDE, SIDE * 4);
    _tile_stored(3, c + W * SIDE + W, SIDE * 4);
}

// Scratch memory from the start of a cache line on: a tile's row is one, and one that lies across two is read twice.
template <class E> struct Lines {
    struct alignas(64) Line { char bytes[64]; };
    std::vector<Line> lines;
    explicit Lines(int64_t n) : lines(size_t(n * int64_t(sizeof(E)) / 64 + 1)) {}
    E* data() { return (E*)lines.data(); }
};

// Rows of a matrix by blocks of 32; the last ones stand in a copy that zeros fill up.
struct Rows {
    const bf16* data;
    int64_t rows, stride;
    std::vector<bf16> last;
    Rows(const bf16* data, int64_t rows, int64_t stride) : data(data), rows(rows), stride(stride) {
        const int64_t left = rows % SIDE;
        if (!left) return;
        last.assign(SIDE * stride, bf16{0});
        std::copy(data + (rows - left) * stride, data + rows * stride, last.begin());
    }
    const bf16* at(int64_t m) const { return m + SIDE <= rows ? data + m * stride : last.data(); }
};

// y [M, N] (+)= x [M, K] w + (x first) second + bias; low [M, rank] = x first, rounded. K is a multiple of 32, N of 16.
void product(const bf16* x, int64_t M, const Matrix& w, const Matrix& first, const Matrix& second, const bf16* bias,
             bf16* low, bf16* y, bool add, int threads) {
    const int64_t K = w.depth, N = w.columns, rank = low ? first.columns : 0, wide = steps_of(rank) * SIDE;
    const int64_t steps = K / SIDE, more = wide / SIDE, padded = steps_of(M) * SIDE;
    const Rows rows(x, M, K);
    Lines<bf16> lows(padded * wide);
    const int64_t parts = std::max<int64_t>(1, (M * K * 2 + CACHED_BYTES - 1) / CACHED_BYTES);
    const int64_t part = steps_of((M + parts - 1) / parts) * SIDE;
#pragma omp parallel num_threads(threads)
    {
        const Tiles held{};
        shape_whole();
        alignas(64) float c[SIDE * SIDE];
        Lines<uint32_t> panel((steps + more) * STEP_WORDS);
        for (int64_t r = 0; r < rank; r += SIDE) {
            first.panel(r, panel.data());
#pragma omp for schedule(static) nowait
            for (int64_t m = 0; m < padded; m += SIDE) {
                block(rows.at(m), K, steps, nullptr, 0, 0, panel.data(), c);
                for (int64_t i = 0; i < SIDE; i++)
                    for (int64_t j = 0; j < SIDE; j += W) store(lows.data() + (m + i) * wide + r + j, load(c + i * SIDE + j));
                for (int64_t i = 0; i < std::min(SIDE, M - m); i++)
                    std::copy_n(lows.data() + (m + i) * wide + r, std::min(SIDE, rank - r), low + (m + i) * rank + r);
            }
        }
#pragma omp barrier
        for (int64_t top = 0; top < M; top += part) {
            const int64_t bottom = std::min(M, top + part);
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t n = 0; n < N; n += SIDE) {
                w.panel(n, panel.data());
                if (more) second.panel(n, panel.data() + steps * STEP_WORDS);
                for (int64_t m = top; m < bottom; m += SIDE) {
                    block(rows.at(m), K, steps, lows.data() + m * wide, wide, more, panel.data(), c);
                    for (int64_t i = 0; i < std::min(SIDE, M - m); i++)
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
void gram(const bf16* small, int64_t rank, const bf16* big, int64_t N, int64_t M, float* out, int threads) {
    const int64_t steps = steps_of(M), wide = (rank + W - 1) / W;
    // The small one, sixteen of its columns as the rows of a tile: [wide][steps][16][32].
    Lines<bf16> turned(wide * steps * W * SIDE);
    for (int64_t m = 0; m < M; m++)
        for (int64_t r = 0; r < rank; r++)
            turned.data()[((r / W * steps + m / SIDE) * W + r % W) * SIDE + m % SIDE] = small[m * rank + r];
    const Matrix right{big, N, false, M, N};
#pragma omp parallel num_threads(threads)
    {
        const Tiles held{};
        shape_whole();
        alignas(64) uint32_t b[STEP_WORDS];
        alignas(64) float c[W * SIDE];
        for (int64_t g = 0; g < wide; g++)
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t n = 0; n < N; n += SIDE) {
                _tile_zero(0);
                _tile_zero(1);
                for (int64_t s = 0; s < steps; s++) {
                    right.tile(s * SIDE, n, b);
                    right.tile(s * SIDE, n + W, b + W * W);
                    _tile_loadd(4, turned.data() + (g * steps + s) * W * SIDE, 64);
                    _tile_loadd(6, b, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_loadd(7, b + W * W, 64);
                    _tile_dpbf16ps(1, 4, 7);
                }
                _tile_stored(0, c, SIDE * 4);
                _tile_stored(1, c + W, SIDE * 4);
                for (int64_t i = 0; i < std::min<int64_t>(W, rank - g * W); i++)
                    std::copy_n(c + i * SIDE, std::min(SIDE, N - n), out + (g * W + i) * N + n);
            }
    }
}

#endif

}  // namespace luthier

using luthier::bf16;

extern "C" int tiles_given() {
#if defined(LUTHIER_TILES)
    return luthier::tiles();
#else
    return 0;
#endif
}

// x [M, K]; turned: w [N, K], first [rank, K], second [N, rank]; else w [K, N], first [K, rank], second [rank, N].
extern "C" void product_bf16(const bf16* x, const bf16* w, const bf16* first, const bf16* second, const bf16* bias, bf16* low,
                             bf16* y, int64_t M, int64_t K, int64_t N, int64_t rank, int turned, int add, int threads) {
#if defined(LUTHIER_TILES)
    using luthier::Matrix;
    const bool t = turned;
    luthier::product(x, M, Matrix{w, t ? K : N, t, K, N}, Matrix{first, t ? K : rank, t, K, rank},
                     Matrix{second, t ? rank : N, t, rank, N}, bias, low, y, add, threads);
#endif
}

// out [rank, N] = small [M, rank]^T big [M, N].
extern "C" void gram_bf16(const bf16* small, const bf16* big, float* out, int64_t rank, int64_t N, int64_t M, int threads) {
#if defined(LUTHIER_TILES)
    luthier::gram(small, rank, big, N, M, out, threads);
#endif
}
