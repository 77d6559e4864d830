/* Random numbers from a key and a position: the functions of counters.py, bit for bit, after hashing.py's fmix32. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(HASTEN_MVEC)
/* glibc's vector versions, which math.h offers only under -ffast-math */
__attribute__((simd("notinbranch"))) double log(double);
__attribute__((simd("notinbranch"))) double cos(double);
#endif
#ifdef _OPENMP
#define PARALLEL _Pragma("omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)")
#else
#define PARALLEL
#endif

/* Called once a tile: copies of it in every caller would take the compiler seconds and save nothing. */
#define ONCE static __attribute__((noinline))

enum { TILE = 1024, SIGNS = 0, PLACES = 1 };

typedef struct { uint32_t low, high; } Stream;
static Stream stream(uint64_t key, uint64_t number) {
    uint64_t z = key + (number + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (Stream){(uint32_t)z, (uint32_t)(z >> 32)};
}
static inline uint32_t hashed(Stream s, uint64_t x) {
    return fmix32(fmix32((uint32_t)x ^ s.low) ^ s.high ^ (uint32_t)(x >> 32));
}
static inline uint32_t below(uint32_t bound, uint32_t bits) {
    return (uint32_t)(((uint64_t)bits * bound) >> 32);
}

/* y ← y + h(x) mod bound, where x and y are below 2^31; h from its table if there is one */
ONCE void mix(Stream s, const uint32_t *table, uint32_t bound, const uint32_t *x, uint32_t *y, int count) {
    uint32_t low = s.low, high = s.high;
    if (table)
#pragma omp simd
        for (int k = 0; k < count; k++) {
            uint32_t moved = y[k] + table[x[k]];
            y[k] = moved - (moved >= bound ? bound : 0);
        }
    else
#pragma omp simd
        for (int k = 0; k < count; k++) {
            uint32_t moved = y[k] + below(bound, fmix32(fmix32(x[k] ^ low) ^ high));
            y[k] = moved - (moved >= bound ? bound : 0);
        }
}
static int double_rounds(uint64_t size) {
    int rounds = size > 1 ? (int)ceil(32 / log2((double)size)) : 2;
    return rounds > 2 ? rounds : 2;
}
ONCE void permute(uint64_t key, uint32_t rows, uint32_t columns, const uint32_t *by_row,
                    const uint32_t *by_column, uint32_t *a, uint32_t *b, int count) {
    int rounds = double_rounds((uint64_t)rows * columns);
    for (int t = 0; t < rounds; t++) {
        mix(stream(key, PLACES + 4 * t), by_row ? by_row + (size_t)t * rows : 0, columns, a, b, count);
        mix(stream(key, PLACES + 4 * t + 2), by_column ? by_column + (size_t)t * columns : 0, rows, b, a, count);
    }
}

/* ±1, or standard normal numbers, at the positions start … start + count − 1 of a key. */
void sign_numbers(uint64_t key, int64_t start, int64_t count, double *out) {
    Stream s = stream(key, SIGNS);
    for (int64_t x = start; x < start + count;) {
        uint32_t bits = hashed(s, (uint64_t)x >> 5) >> (x & 31);
        for (int64_t word = x >> 5; x < start + count && x >> 5 == word; x++, bits >>= 1) *out++ = bits & 1u ? -1 : 1;
    }
}
void normal_numbers(uint64_t key, int64_t start, int64_t count, double *out) {
    Stream first = stream(key, 0), second = stream(key, 1);
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        double u = ((double)hashed(first, (uint64_t)(start + i)) + 1) * 0x1p-32;
        double v = (double)hashed(second, (uint64_t)(start + i)) * 0x1p-32;
        out[i] = sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
    }
}

void uniform_numbers(uint64_t key, int64_t start, int64_t count, double *out) {
    Stream first = stream(key, 0), second = stream(key, 1);
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        uint64_t high = hashed(first, (uint64_t)(start + i)) >> 5, low = hashed(second, (uint64_t)(start + i)) >> 6;
        out[i] = (double)(high << 26 | low) * 0x1p-53;
    }
}

/* `count` different positions below size, in random order. */
void choose(uint64_t key, int64_t size, int64_t rows, int64_t count, int64_t *out) {
    uint32_t columns = (uint32_t)((size + rows - 1) / rows), a[TILE], b[TILE];
    for (int64_t start = 0; start < count; start += TILE) {
        int tile = (int)(count - start < TILE ? count - start : TILE);
        for (int k = 0; k < tile; k++) {
            a[k] = (uint32_t)((start + k) % rows);
            b[k] = (uint32_t)((start + k) / rows);
        }
        permute(key, (uint32_t)rows, columns, 0, 0, a, b, tile);
        for (int k = 0; k < tile; k++) {
            while (a[k] + rows * (int64_t)b[k] >= size)
                permute(key, (uint32_t)rows, columns, 0, 0, a + k, b + k, 1);
            out[start + k] = a[k] + rows * (int64_t)b[k];
        }
    }
}
