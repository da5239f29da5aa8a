// Products of bf16 pairs in the processor's matrix tiles (AMX): sixteen rows of sixteen pairs times sixteen rows of sixteen
// columns, summed in float32.
#pragma once
#include "simd.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define LUTHIER_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace luthier {

#if defined(LUTHIER_TILES)

// Linux gives the tiles' 8 kB of state to processes that ask.
inline bool tiles() {
    constexpr int ASK = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool given = syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
    return given;
}

// 0 and 1: sums of sixteen rows, 2: their left side; 3, 4 and 5: the same for the rows that are left over; 6, 7: the
// right side. Shaping the tiles costs as much as two products, so that what is left over has tiles of its own.
struct Shaped {
    struct alignas(64) Form {
        uint8_t palette = 1, start = 0, unused[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    };
    int rest = -1;
    void shape(int rows) {
        if (rows == rest || (rows == 0 && rest >= 0)) return;
        Form form;
        for (int t = 0; t < 8; t++) {
            form.bytes[t] = 64;
            form.rows[t] = uint8_t(t >= 3 && t <= 5 && rows ? rows : 16);
        }
        _tile_loadconfig(&form);
        rest = rows;
    }
    void release() {
        if (rest >= 0) _tile_release();
        rest = -1;
    }
};
inline Shaped& shaped() {
    static thread_local Shaped state;
    return state;
}

// A thread holds its tiles no longer than this lives: others, torch among them, shape them for themselves.
struct Tiles {
    Tiles() { shaped().rest = -1; }
    ~Tiles() { shaped().release(); }
};

// C [rows, 32] (+)= A [rows, K pairs] B [K, 32], for sixteen rows or, with LEFT, those that are left over.
template <bool LEFT>
inline void tile_pair(const uint32_t* A, int64_t lda, const uint32_t* B, int64_t ldb, float* c, int64_t ldc, int K, bool add) {
    constexpr int W4 = 4;
#define SUMS(FIRST, SECOND, SIDE)                                                                                      \
    if (add) {                                                                                                         \
        _tile_loadd(FIRST, c, ldc * W4);                                                                               \
        _tile_loadd(SECOND, c + W, ldc * W4);                                                                          \
    } else {                                                                                                           \
        _tile_zero(FIRST);                                                                                             \
        _tile_zero(SECOND);                                                                                            \
    }                                                                                                                  \
    for (int k = 0; k < K; k += W) {                                                                                   \
        _tile_loadd(SIDE, A + k, lda * W4);                                                                            \
        _tile_loadd(6, B + k * ldb, ldb * W4);                                                                         \
        _tile_dpbf16ps(FIRST, SIDE, 6);                                                                                \
        _tile_loadd(7, B + k * ldb + W, ldb * W4);                                                                     \
        _tile_dpbf16ps(SECOND, SIDE, 7);                                                                               \
    }                                                                                                                  \
    _tile_stored(FIRST, c, ldc * W4);                                                                                  \
    _tile_stored(SECOND, c + W, ldc * W4);
    if constexpr (LEFT) {
        SUMS(3, 4, 5)
    } else {
        SUMS(0, 1, 2)
    }
#undef SUMS
}

// C [M, 16 vectors] (+)= A [M, K] B [K, 16 vectors]; K counts pairs, a multiple of sixteen; `vectors` is even.
inline void tile_product(const uint32_t* A, int64_t lda, const uint32_t* B, int64_t ldb, float* c, int64_t ldc, int M,
                         int vectors, int K, bool add) {
    shaped().shape(M % W);
    for (int v = 0; v < vectors; v += 2) {
        int m = 0;
        for (; m + W <= M; m += W)
            tile_pair<false>(A + m * lda, lda, B + v * W, ldb, c + m * ldc + v * W, ldc, K, add);
        if (m < M) tile_pair<true>(A + m * lda, lda, B + v * W, ldb, c + m * ldc + v * W, ldc, K, add);
    }
}

#else

struct Tiles {};

#endif

}  // namespace luthier
