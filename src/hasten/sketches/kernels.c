/* Sketches on a CPU: signs and places hashed a tile at a time, used, and forgotten. The functions of
   counters.py, bit for bit. A plan is {kind, dimension, rank, key, per_row, m, rest, q, a, b}. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#define PARALLEL _Pragma("omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)")
#else
#define PARALLEL
#endif

enum { UNIFORM, BALANCED, AFFINE, STRIDED, SPARSE };
enum { FLOAT, DOUBLE, BFLOAT, HALF };
enum { TILE = 1024, MOST = 16, SIGNS = 0, PLACES = 1 };

typedef struct {
    int64_t kind, dimension, rank;
    uint64_t key;
    int64_t per_row, m, rest, q, a, b;
} Plan;
typedef struct { uint32_t low, high; } Stream;
typedef struct { uint32_t place[MOST][TILE]; double sign[MOST][TILE]; } Tile;

static inline uint32_t fmix32(uint32_t h) {
    h ^= h >> 16; h *= 0x85ebca6bu; h ^= h >> 13; h *= 0xc2b2ae35u; return h ^ (h >> 16);
}
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

/* y ← y + h(x) mod bound, where x and y are below 2^31 */
static void mix(Stream s, uint32_t bound, const uint32_t *x, uint32_t *y, int count) {
    uint32_t low = s.low, high = s.high;
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
static void permute(uint64_t key, uint32_t rows, uint32_t columns, uint32_t *a, uint32_t *b, int count) {
    int rounds = double_rounds((uint64_t)rows * columns);
    for (int t = 0; t < rounds; t++) {
        mix(stream(key, PLACES + 4 * t), columns, a, b, count);
        mix(stream(key, PLACES + 4 * t + 2), rows, b, a, count);
    }
}

static void fill_signs(uint64_t key, int number, int64_t start, int count, double *sign) {
    Stream s = stream(key, number);
    for (int k = 0; k < count;) {
        uint64_t x = (uint64_t)start + k;
        uint32_t bits = hashed(s, x >> 5) >> (x & 31);
        int run = 32 - (int)(x & 31);
        run = run < count - k ? run : count - k;
#pragma omp simd
        for (int j = 0; j < run; j++) sign[k + j] = 1.0 - 2.0 * (int)((bits >> j) & 1u);
        k += run;
    }
}

/* Places (columns of P) of the entries start … start + count − 1. */
static void fill_places(const Plan *p, int64_t start, int count, Tile *tile) {
    uint32_t *place = tile->place[0], other[TILE], r = (uint32_t)p->rank;
    if (p->kind == STRIDED || p->kind == BALANCED) {
        uint32_t a = (uint32_t)(start % p->rank), b = (uint32_t)(start / p->rank);
        for (int k = 0; k < count; k++) {
            place[k] = a;
            other[k] = b;
            if (++a == r) { a = 0; b++; }
        }
        if (p->kind == BALANCED) permute(p->key, r, (uint32_t)p->m, place, other, count);
    } else if (p->kind == AFFINE) {
        /* The first `rest` places have m + 1 positions, the others m. With half a position added, products with a
           rounded reciprocal have the right whole part, because positions are below 2^31. */
        double small = 1.0 / (double)p->m, large = 1.0 / (double)(p->m + 1), rest = (double)p->rest;
        uint32_t q = (uint32_t)p->q, step = (uint32_t)p->a;
        uint32_t position = (uint32_t)(((uint64_t)p->a * (uint64_t)start + (uint64_t)p->b) % (uint64_t)p->q);
        for (int k = 0; k < count; k++) {
            other[k] = position;
            position += step;
            position -= position >= q ? q : 0;
        }
#pragma omp simd
        for (int k = 0; k < count; k++) {
            double v = (double)(int32_t)other[k] + 0.5;
            int32_t first = (int32_t)(v * large), second = (int32_t)((v - rest) * small);
            place[k] = (uint32_t)(first > second ? first : second);
        }
    } else {
        for (int t = 0; t < p->per_row; t++) {
            Stream s = stream(p->key, PLACES + 2 * t);
            uint32_t last = r - (uint32_t)p->per_row + (uint32_t)t;
            for (int k = 0; k < count; k++) {
                uint32_t found = below(last + 1, hashed(s, (uint64_t)start + k));
                for (int u = 0; u < t; u++)
                    if (tile->place[u][k] == found) { found = last; break; }
                tile->place[t][k] = found;
            }
        }
    }
}
static void fill(const Plan *p, int64_t start, int count, Tile *tile) {
    fill_places(p, start, count, tile);
    for (int t = 0; t < p->per_row; t++) fill_signs(p->key, SIGNS + 2 * t, start, count, tile->sign[t]);
}

static inline float widened(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16; float x; memcpy(&x, &wide, 4); return x;
}
static inline uint16_t narrowed(float x) {
    uint32_t bits; memcpy(&bits, &x, 4);
    return x != x ? (uint16_t)0x7fc0 : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Entries start … of a vector of any type as doubles, and back (half types through float, as torch rounds). */
static void load(int type, const void *x, int64_t start, int count, double *value) {
    const float *f = (const float *)x + start;
    const double *d = (const double *)x + start;
    const uint16_t *b = (const uint16_t *)x + start;
    if (type == FLOAT) for (int k = 0; k < count; k++) value[k] = f[k];
    else if (type == DOUBLE) memcpy(value, d, sizeof(double) * (size_t)count);
    else if (type == BFLOAT) for (int k = 0; k < count; k++) value[k] = widened(b[k]);
#ifdef __FLT16_MAX__
    else for (int k = 0; k < count; k++) value[k] = ((const _Float16 *)x)[start + k];
#endif
}
static void store(int type, void *x, int64_t start, int count, const double *value) {
    float *f = (float *)x + start;
    double *d = (double *)x + start;
    uint16_t *b = (uint16_t *)x + start;
    if (type == FLOAT) for (int k = 0; k < count; k++) f[k] = (float)value[k];
    else if (type == DOUBLE) memcpy(d, value, sizeof(double) * (size_t)count);
    else if (type == BFLOAT) for (int k = 0; k < count; k++) b[k] = narrowed((float)value[k]);
#ifdef __FLT16_MAX__
    else for (int k = 0; k < count; k++) ((_Float16 *)x)[start + k] = (_Float16)(float)value[k];
#endif
}
int has_half(void) {
#ifdef __FLT16_MAX__
    return 1;
#else
    return 0;
#endif
}

#define ADD(NUMBER)                                                                                          \
    static void add_##NUMBER(const Plan *p, const Tile *tile, const double *value, int count, NUMBER *s) {   \
        if (p->kind == STRIDED) {                                                                            \
            for (int k = 0; k < count;) {                                                                    \
                int64_t place = tile->place[0][k], run = p->rank - place;                                    \
                run = run < count - k ? run : count - k;                                                     \
                NUMBER *restrict to = s + place;                                                             \
                const double *restrict v = value + k, *restrict sign = tile->sign[0] + k;                    \
                for (int64_t j = 0; j < run; j++) to[j] += (NUMBER)(sign[j] * v[j]);                         \
                k += (int)run;                                                                               \
            }                                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        for (int t = 0; t < p->per_row; t++)                                                                 \
            for (int k = 0; k < count; k++)                                                                  \
                s[tile->place[t][k]] += (NUMBER)(tile->sign[t][k] * value[k]);                               \
    }
ADD(float)
ADD(double)

/* s = Pᵀg. Each of `parts` stretches of g is summed by itself, then these sums in order: their number depends on the
   dimension and the rank alone, so the result does not depend on the threads. Sums are kept in double where they
   take less room than g, otherwise (parts = 0) in s itself. */
int project(const Plan *p, const void *g, int type, void *s, int type_s, int parts, int threads) {
    int64_t d = p->dimension, r = p->rank, tiles = (d + TILE - 1) / TILE;
    double scale = 1 / sqrt((double)p->per_row);
    size_t bytes = (type_s == DOUBLE ? sizeof(double) : sizeof(float)) * (size_t)r;
    double *sums = parts ? calloc((size_t)parts * (size_t)r, sizeof(double)) : 0;
    if (parts && !sums) return 1;
    if (!parts) memset(s, 0, bytes);
    int stretches = parts ? parts : 1;
PARALLEL
    for (int part = 0; part < stretches; part++) {
        Tile tile;
        double value[TILE];
        for (int64_t i = tiles * part / stretches; i < tiles * (part + 1) / stretches; i++) {
            int64_t start = i * TILE;
            int count = (int)(d - start < TILE ? d - start : TILE);
            fill(p, start, count, &tile);
            load(type, g, start, count, value);
            if (parts) add_double(p, &tile, value, count, sums + part * r);
            else if (type_s == DOUBLE) add_double(p, &tile, value, count, s);
            else add_float(p, &tile, value, count, s);
        }
    }
    for (int64_t j = 0; j < r; j++) {
        double sum = 0;
        if (!parts) sum = type_s == DOUBLE ? ((double *)s)[j] : ((float *)s)[j];
        for (int part = 0; part < parts; part++) sum += sums[part * r + j];
        if (type_s == DOUBLE) ((double *)s)[j] = scale * sum;
        else ((float *)s)[j] = (float)(scale * sum);
    }
    free(sums);
    return 0;
}

/* out = P s */
void lift(const Plan *p, const void *s, int type_s, void *out, int type, int threads) {
    int64_t d = p->dimension, tiles = (d + TILE - 1) / TILE;
    double scale = 1 / sqrt((double)p->per_row);
PARALLEL
    for (int64_t block = 0; block < (tiles + 31) / 32; block++) {
        Tile tile;
        double value[TILE];
        for (int64_t i = 32 * block; i < tiles && i < 32 * (block + 1); i++) {
            int64_t start = i * TILE;
            int count = (int)(d - start < TILE ? d - start : TILE);
            fill(p, start, count, &tile);
            memset(value, 0, sizeof value);
            for (int t = 0; t < p->per_row; t++)
                if (type_s == DOUBLE)
                    for (int k = 0; k < count; k++) value[k] += tile.sign[t][k] * ((const double *)s)[tile.place[t][k]];
                else
                    for (int k = 0; k < count; k++) value[k] += tile.sign[t][k] * ((const float *)s)[tile.place[t][k]];
            if (p->per_row > 1) for (int k = 0; k < count; k++) value[k] *= scale;
            store(type, out, start, count, value);
        }
    }
}

/* Columns first … last − 1 of P as the rows of out, which holds zeros. */
void columns(const Plan *p, int64_t first, int64_t last, void *out, int type) {
    double scale = 1 / sqrt((double)p->per_row);
    Tile tile;
    for (int64_t start = 0; start < p->dimension; start += TILE) {
        int count = (int)(p->dimension - start < TILE ? p->dimension - start : TILE);
        fill(p, start, count, &tile);
        for (int t = 0; t < p->per_row; t++)
            for (int k = 0; k < count; k++) {
                int64_t row = (int64_t)tile.place[t][k] - first;
                double entry = scale * tile.sign[t][k];
                if (row >= 0 && row < last - first) store(type, out, row * p->dimension + start + k, 1, &entry);
            }
    }
}

/* ±1, or standard normal numbers, at the positions start … start + count − 1 of a key. */
void sign_numbers(uint64_t key, int64_t start, int64_t count, double *out) {
    for (int64_t i = 0; i < count; i += TILE)
        fill_signs(key, SIGNS, start + i, (int)(count - i < TILE ? count - i : TILE), out + i);
}
void normal_numbers(uint64_t key, int64_t start, int64_t count, double *out) {
    Stream first = stream(key, 0), second = stream(key, 1);
    for (int64_t i = 0; i < count; i++) {
        double u = ((double)hashed(first, (uint64_t)(start + i)) + 1) * 0x1p-32;
        double v = (double)hashed(second, (uint64_t)(start + i)) * 0x1p-32;
        out[i] = sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
    }
}

void uniform_numbers(uint64_t key, int64_t start, int64_t count, double *out) {
    Stream first = stream(key, 0), second = stream(key, 1);
    for (int64_t i = 0; i < count; i++) {
        uint64_t high = hashed(first, (uint64_t)(start + i)) >> 5, low = hashed(second, (uint64_t)(start + i)) >> 6;
        out[i] = (double)(high << 26 | low) * 0x1p-53;
    }
}

/* out = factor · (signs of the key) · x, for any types */
void apply_signs(uint64_t key, const void *x, int type_x, void *out, int type, int64_t count, double factor,
                 int threads) {
    int64_t tiles = (count + TILE - 1) / TILE;
PARALLEL
    for (int64_t block = 0; block < (tiles + 31) / 32; block++) {
        double sign[TILE], value[TILE];
        for (int64_t i = 32 * block; i < tiles && i < 32 * (block + 1); i++) {
            int64_t start = i * TILE;
            int tile = (int)(count - start < TILE ? count - start : TILE);
            fill_signs(key, SIGNS, start, tile, sign);
            load(type_x, x, start, tile, value);
            for (int k = 0; k < tile; k++) value[k] *= factor * sign[k];
            store(type, out, start, tile, value);
        }
    }
}

/* The Walsh–Hadamard transform (without a factor) in place. A long vector is a matrix whose rows are transformed
   where they lie, and whose columns a panel at a time in a buffer that a cache holds. */
enum { ROW = 14, PANEL = 32 };
#define HADAMARD(NUMBER)                                                                                     \
    static void levels_##NUMBER(NUMBER *x, int64_t size, int64_t from) {                                     \
        int64_t h = from;                                                                                    \
        for (; 4 * h <= size; h *= 4)                                                                        \
            for (int64_t i = 0; i < size; i += 4 * h) {                                                      \
                NUMBER *restrict a = x + i, *restrict b = a + h, *restrict c = b + h, *restrict d = c + h;   \
                for (int64_t j = 0; j < h; j++) {                                                            \
                    NUMBER ab = a[j] + b[j], a_b = a[j] - b[j], cd = c[j] + d[j], c_d = c[j] - d[j];         \
                    a[j] = ab + cd; b[j] = a_b + c_d; c[j] = ab - cd; d[j] = a_b - c_d;                      \
                }                                                                                            \
            }                                                                                                \
        if (2 * h <= size)                                                                                   \
            for (int64_t i = 0; i < size; i += 2 * h) {                                                      \
                NUMBER *restrict a = x + i, *restrict b = a + h;                                             \
                for (int64_t j = 0; j < h; j++) { NUMBER s = a[j] + b[j]; b[j] = a[j] - b[j]; a[j] = s; }    \
            }                                                                                                \
    }                                                                                                        \
    static void hadamard_##NUMBER(NUMBER *x, int bits, int threads) {                                        \
        int low = bits < ROW ? bits : ROW;                                                                   \
        int64_t width = (int64_t)1 << low, rows = (int64_t)1 << (bits - low), panels = width / PANEL;        \
PARALLEL                                                                                                     \
        for (int64_t row = 0; row < rows; row++) levels_##NUMBER(x + row * width, width, 1);                 \
        if (rows == 1) return;                                                                               \
PARALLEL                                                                                                     \
        for (int64_t panel = 0; panel < panels; panel++) {                                                   \
            NUMBER *buffer = malloc(sizeof(NUMBER) * (size_t)rows * PANEL), *corner = x + panel * PANEL;     \
            for (int64_t i = 0; i < rows; i++) memcpy(buffer + i * PANEL, corner + i * width, sizeof(NUMBER) * PANEL); \
            levels_##NUMBER(buffer, rows * PANEL, PANEL);                                                    \
            for (int64_t i = 0; i < rows; i++) memcpy(corner + i * width, buffer + i * PANEL, sizeof(NUMBER) * PANEL); \
            free(buffer);                                                                                    \
        }                                                                                                    \
    }
HADAMARD(float)
HADAMARD(double)
void hadamard(void *x, int type, int bits, int threads) {
    if (type == DOUBLE) hadamard_double(x, bits, threads);
    else hadamard_float(x, bits, threads);
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
        permute(key, (uint32_t)rows, columns, a, b, tile);
        for (int k = 0; k < tile; k++) {
            while (a[k] + rows * (int64_t)b[k] >= size) permute(key, (uint32_t)rows, columns, a + k, b + k, 1);
            out[start + k] = a[k] + rows * (int64_t)b[k];
        }
    }
}
