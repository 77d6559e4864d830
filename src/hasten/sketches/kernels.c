/* Sketches on a CPU: signs and places hashed a tile at a time, used, and forgotten. The functions of
   counters.py, bit for bit. */
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

enum { UNIFORM, BALANCED, AFFINE, STRIDED, SPARSE };
enum { FLOAT, DOUBLE, BFLOAT, HALF };
enum { TILE = 1024, MOST = 16, SIGNS = 0, PLACES = 1 };

/* What Python tells, and tables of the rounds of a permutation where its grid is narrow: by row and by column. */
typedef struct {
    int64_t kind, dimension, rank;
    uint64_t key;
    int64_t per_row, m, rest, q, a, b;
    uint32_t *by_row, *by_column;
} Plan;
typedef struct { uint32_t low, high; } Stream;
/* Of up to TILE rows of P: the columns of their entries, and their signs, 32 to a word. */
typedef struct { uint32_t place[MOST][TILE]; uint32_t signs[MOST][TILE / 32]; } Tile;

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

/* y ← y + h(x) mod bound, where x and y are below 2^31; h from its table if there is one */
static void mix(Stream s, const uint32_t *table, uint32_t bound, const uint32_t *x, uint32_t *y, int count) {
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
static void permute(uint64_t key, uint32_t rows, uint32_t columns, const uint32_t *by_row,
                    const uint32_t *by_column, uint32_t *a, uint32_t *b, int count) {
    int rounds = double_rounds((uint64_t)rows * columns);
    for (int t = 0; t < rounds; t++) {
        mix(stream(key, PLACES + 4 * t), by_row ? by_row + (size_t)t * rows : 0, columns, a, b, count);
        mix(stream(key, PLACES + 4 * t + 2), by_column ? by_column + (size_t)t * columns : 0, rows, b, a, count);
    }
}
/* The table of every second round, starting from a stream; none for more positions than a cache holds. */
static uint32_t *table_of(const Plan *p, int number, uint32_t positions, uint32_t bound) {
    int rounds = double_rounds((uint64_t)p->rank * (uint64_t)p->m);
    uint32_t *table = p->kind == BALANCED && positions <= 4096 ? malloc(sizeof(uint32_t) * positions * (size_t)rounds) : 0;
    for (int t = 0; table && t < rounds; t++) {
        Stream s = stream(p->key, (uint64_t)number + 4 * (uint64_t)t);
#pragma omp simd
        for (uint32_t x = 0; x < positions; x++)
            table[(size_t)t * positions + x] = below(bound, fmix32(fmix32(x ^ s.low) ^ s.high));
    }
    return table;
}
static Plan begin(const int64_t *told) {
    Plan p = {0};
    memcpy(&p, told, 10 * sizeof(int64_t));
    p.by_row = table_of(&p, PLACES, (uint32_t)p.rank, (uint32_t)p.m);
    p.by_column = table_of(&p, PLACES + 2, (uint32_t)p.m, (uint32_t)p.rank);
    return p;
}
static void end(Plan *p) { free(p->by_row); free(p->by_column); }

/* The signs of the positions start …, start a multiple of 32. */
static void fill_signs(uint64_t key, int number, int64_t start, int count, uint32_t *signs) {
    Stream s = stream(key, number);
#pragma omp simd
    for (int w = 0; w < (count + 31) / 32; w++) signs[w] = hashed(s, (uint64_t)(start >> 5) + w);
}

/* Places (columns of P) of the rows start … start + count − 1; those of STRIDED are counted where they are used. */
static void fill_places(const Plan *p, int64_t start, int count, Tile *tile) {
    uint32_t *place = tile->place[0], other[TILE], r = (uint32_t)p->rank;
    if (p->kind == BALANCED) {
        uint32_t a = (uint32_t)(start % p->rank), b = (uint32_t)(start / p->rank);
        for (int k = 0; k < count;) {
            int run = (int)(r - a < (uint32_t)(count - k) ? r - a : (uint32_t)(count - k));
#pragma omp simd
            for (int j = 0; j < run; j++) { place[k + j] = a + (uint32_t)j; other[k + j] = b; }
            k += run; a = 0; b++;
        }
        permute(p->key, r, (uint32_t)p->m, p->by_row, p->by_column, place, other, count);
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
    } else if (p->kind != STRIDED) {
        /* Floyd's sampling: different places in a row, every set equally likely. */
        for (int t = 0; t < p->per_row; t++) {
            Stream s = stream(p->key, PLACES + 2 * t);
            uint32_t last = r - (uint32_t)p->per_row + (uint32_t)t, *found = tile->place[t];
#pragma omp simd
            for (int k = 0; k < count; k++) {
                found[k] = below(last + 1, hashed(s, (uint64_t)start + (uint64_t)k));
                other[k] = 0;
            }
            for (int u = 0; u < t; u++)
#pragma omp simd
                for (int k = 0; k < count; k++) other[k] |= tile->place[u][k] == found[k];
#pragma omp simd
            for (int k = 0; k < count; k++) found[k] = other[k] ? last : found[k];
        }
    }
}
static void fill(const Plan *p, int64_t start, int count, Tile *tile) {
    fill_places(p, start, count, tile);
    for (int t = 0; t < p->per_row; t++) fill_signs(p->key, SIGNS + 2 * t, start, count, tile->signs[t]);
}

static inline float widened(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16; float x; memcpy(&x, &wide, 4); return x;
}
static inline uint16_t narrowed(float x) {
    uint32_t bits; memcpy(&bits, &x, 4);
    return x != x ? (uint16_t)0x7fc0 : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#ifdef __FLT16_MAX__
typedef _Float16 Half;
int has_half(void) { return 1; }
#else
typedef float Half; /* never used: has_half says so */
int has_half(void) { return 0; }
#endif

/* Tiles of entries are treated in NUMBER: double where one side is double, otherwise float. */
#define EACH(EXPRESSION) for (int k = 0; k < count; k++) EXPRESSION
#define TILES(NUMBER, WORD, TOP)                                                                             \
    static void load_##NUMBER(int type, const void *x, int64_t start, int count, NUMBER *value) {            \
        if (type == FLOAT) EACH(value[k] = (NUMBER)((const float *)x)[start + k]);                           \
        else if (type == DOUBLE) EACH(value[k] = (NUMBER)((const double *)x)[start + k]);                    \
        else if (type == BFLOAT) EACH(value[k] = widened(((const uint16_t *)x)[start + k]));                 \
        else EACH(value[k] = (NUMBER)((const Half *)x)[start + k]);                                          \
    }                                                                                                        \
    static void store_##NUMBER(int type, void *x, int64_t start, int count, const NUMBER *value) {           \
        if (type == FLOAT) EACH(((float *)x)[start + k] = (float)value[k]);                                  \
        else if (type == DOUBLE) EACH(((double *)x)[start + k] = (double)value[k]);                          \
        else if (type == BFLOAT) EACH(((uint16_t *)x)[start + k] = narrowed((float)value[k]));               \
        else EACH(((Half *)x)[start + k] = (Half)(float)value[k]);                                           \
    }                                                                                                        \
    /* to = signs · from, in whole words of signs */                                                         \
    static void flip_##NUMBER(const uint32_t *signs, const NUMBER *from, NUMBER *to, int count) {            \
        for (int w = 0; w < (count + 31) / 32; w++)                                                          \
            for (int j = 0; j < 32; j++) {                                                                   \
                WORD bits; memcpy(&bits, from + 32 * w + j, sizeof bits);                                    \
                bits ^= (WORD)((signs[w] >> j) & 1u) << TOP;                                                 \
                memcpy(to + 32 * w + j, &bits, sizeof bits);                                                 \
            }                                                                                                \
    }                                                                                                        \
    /* value = the rows of P, times s */                                                                     \
    static void gather_##NUMBER(const Plan *p, const Tile *tile, int64_t start, const void *from,            \
                                NUMBER *value, int count) {                                                  \
        const NUMBER *s = from;                                                                              \
        NUMBER found[TILE];                                                                                  \
        memset(value, 0, sizeof found);                                                                      \
        if (p->kind == STRIDED)                                                                              \
            for (int64_t k = 0, place = start % p->rank; k < count; place = 0) {                             \
                int64_t run = p->rank - place < count - k ? p->rank - place : count - k;                     \
                memcpy(found + k, s + place, sizeof(NUMBER) * (size_t)run);                                  \
                k += run;                                                                                    \
            }                                                                                                \
        for (int t = 0; t < p->per_row; t++) {                                                               \
            if (p->kind != STRIDED) EACH(found[k] = s[tile->place[t][k]]);                                   \
            flip_##NUMBER(tile->signs[t], found, p->per_row == 1 ? value : found, count);                    \
            if (p->per_row > 1) EACH(value[k] += found[k]);                                                  \
        }                                                                                                    \
        NUMBER scale = (NUMBER)(1 / sqrt((double)p->per_row));                                               \
        if (p->per_row > 1) EACH(value[k] *= scale);                                                         \
    }
TILES(float, uint32_t, 31)
TILES(double, uint64_t, 63)

/* sums += Pᵀ of a tile of entries */
#define SCATTER(NUMBER, SUM)                                                                                 \
    static void scatter_##NUMBER##_##SUM(const Plan *p, const Tile *tile, int64_t start,                     \
                                         const NUMBER *value, SUM *sums, int count) {                        \
        NUMBER found[TILE];                                                                                  \
        for (int t = 0; t < p->per_row; t++) {                                                               \
            flip_##NUMBER(tile->signs[t], value, found, count);                                              \
            if (p->kind != STRIDED) { EACH(sums[tile->place[t][k]] += found[k]); continue; }                 \
            for (int64_t k = 0, place = start % p->rank; k < count; place = 0) {                             \
                int64_t run = p->rank - place < count - k ? p->rank - place : count - k;                     \
                SUM *restrict to = sums + place;                                                             \
                for (int64_t j = 0; j < run; j++) to[j] += found[k + j];                                     \
                k += run;                                                                                    \
            }                                                                                                \
        }                                                                                                    \
    }
SCATTER(float, float)
SCATTER(float, double)
SCATTER(double, double)

/* s = Pᵀg, s float or, of double g, double. Each of `parts` stretches of g is summed by itself, then these sums in
   order: their number depends on the dimension and the rank alone, so the result does not depend on the threads.
   Sums are kept in double where they take less room than g, otherwise (parts = 0) in s itself. */
int project(const int64_t *told, const void *g, int type, void *s, int parts, int threads) {
    Plan plan = begin(told), *p = &plan;
    int64_t d = p->dimension, r = p->rank, tiles = (d + TILE - 1) / TILE;
    double scale = 1 / sqrt((double)p->per_row), *sums = parts ? calloc((size_t)parts * (size_t)r, sizeof(double)) : 0;
    if (parts && !sums) { end(p); return 1; }
    if (!parts) memset(s, 0, (type == DOUBLE ? sizeof(double) : sizeof(float)) * (size_t)r);
    int stretches = parts ? parts : 1;
PARALLEL
    for (int part = 0; part < stretches; part++) {
        Tile tile;
        double *to = parts ? sums + part * r : s;
        for (int64_t i = tiles * part / stretches; i < tiles * (part + 1) / stretches; i++) {
            int64_t start = i * TILE;
            int count = (int)(d - start < TILE ? d - start : TILE);
            fill(p, start, count, &tile);
            if (type == DOUBLE) {
                double value[TILE];
                load_double(type, g, start, count, value);
                scatter_double_double(p, &tile, start, value, to, count);
            } else {
                float value[TILE];
                load_float(type, g, start, count, value);
                if (parts) scatter_float_double(p, &tile, start, value, to, count);
                else scatter_float_float(p, &tile, start, value, s, count);
            }
        }
    }
PARALLEL
    for (int64_t from = 0; from < r; from += TILE) {
        int count = (int)(r - from < TILE ? r - from : TILE);
        double total[TILE];
        if (!parts && type == DOUBLE) load_double(DOUBLE, s, from, count, total);
        else if (!parts) load_double(FLOAT, s, from, count, total);
        else memset(total, 0, sizeof total);
        for (int part = 0; part < parts; part++) EACH(total[k] += sums[part * r + from + k]);
        EACH(total[k] *= scale);
        store_double(type == DOUBLE ? DOUBLE : FLOAT, s, from, count, total);
    }
    free(sums);
    end(p);
    return 0;
}

/* A loop over the tiles of a vector of `size` entries; each thread takes 32 of them at a time. */
#define OVER_TILES(SIZE)                                                                                     \
PARALLEL                                                                                                     \
    for (int64_t stretch = 0; stretch < (SIZE); stretch += 32 * TILE)                                        \
        for (int64_t start = stretch; start < (SIZE) && start < stretch + 32 * TILE; start += TILE)

/* out = P s */
void lift(const int64_t *told, const void *s, int type_s, void *out, int type, int threads) {
    Plan plan = begin(told), *p = &plan;
    OVER_TILES(p->dimension) {
        Tile tile;
        int count = (int)(p->dimension - start < TILE ? p->dimension - start : TILE);
        fill(p, start, count, &tile);
        if (type_s == DOUBLE) {
            double value[TILE];
            gather_double(p, &tile, start, s, value, count);
            store_double(type, out, start, count, value);
        } else {
            float value[TILE];
            gather_float(p, &tile, start, s, value, count);
            store_float(type, out, start, count, value);
        }
    }
    end(p);
}

/* Columns first … last − 1 of P as the rows of out, which holds zeros. */
void columns(const int64_t *told, int64_t first, int64_t last, void *out, int type, int threads) {
    Plan plan = begin(told), *p = &plan;
    OVER_TILES(p->dimension) {
        Tile tile;
        int count = (int)(p->dimension - start < TILE ? p->dimension - start : TILE);
        fill(p, start, count, &tile);
        for (int t = 0; t < p->per_row; t++)
            for (int k = 0; k < count; k++) {
                int64_t place = p->kind == STRIDED ? (start + k) % p->rank : (int64_t)tile.place[t][k];
                double entry = ((tile.signs[t][k / 32] >> (k % 32)) & 1u ? -1 : 1) / sqrt((double)p->per_row);
                if (first <= place && place < last)
                    store_double(type, out, (place - first) * p->dimension + start + k, 1, &entry);
            }
    }
    end(p);
}

/* out = factor · (signs of the key) · x */
void apply_signs(uint64_t key, const void *x, int type_x, void *out, int type, int64_t size, double factor,
                 int threads) {
    OVER_TILES(size) {
        uint32_t signs[TILE / 32];
        int count = (int)(size - start < TILE ? size - start : TILE);
        fill_signs(key, SIGNS, start, count, signs);
        if (type_x == DOUBLE) {
            double value[TILE];
            load_double(type_x, x, start, count, value);
            flip_double(signs, value, value, count);
            EACH(value[k] *= factor);
            store_double(type, out, start, count, value);
        } else {
            float value[TILE], scale = (float)factor;
            load_float(type_x, x, start, count, value);
            flip_float(signs, value, value, count);
            EACH(value[k] *= scale);
            store_float(type, out, start, count, value);
        }
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

/* The Walsh–Hadamard transform (without a factor) in place. A long vector is a matrix whose rows are transformed
   where they lie, and whose columns a panel at a time in a buffer that a cache holds. */
enum { NEAR = 12, ROW = 14, PANEL = 32 };
#define HADAMARD(NUMBER)                                                                                     \
    static void eights_##NUMBER(NUMBER *restrict x, int64_t size) {                                          \
        for (int64_t i = 0; i < size; i += 8) {                                                              \
            NUMBER a[8], b[8];                                                                               \
            for (int j = 0; j < 8; j++) a[j] = x[i + (j ^ 1)] + (j & 1 ? -x[i + j] : x[i + j]);              \
            for (int j = 0; j < 8; j++) b[j] = a[j ^ 2] + (j & 2 ? -a[j] : a[j]);                            \
            for (int j = 0; j < 8; j++) x[i + j] = b[j ^ 4] + (j & 4 ? -b[j] : b[j]);                        \
        }                                                                                                    \
    }                                                                                                        \
    /* Levels h = from, 2 from, …, size/2 of every stretch of `size` entries, two at a time. */              \
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
    static void row_##NUMBER(NUMBER *x, int bits) {                                                          \
        int64_t size = (int64_t)1 << bits, near = (int64_t)1 << (bits < NEAR ? bits : NEAR);                 \
        if (bits < 3) { levels_##NUMBER(x, size, 1); return; }                                               \
        for (int64_t i = 0; i < size; i += near) {                                                           \
            eights_##NUMBER(x + i, near);                                                                    \
            levels_##NUMBER(x + i, near, 8);                                                                 \
        }                                                                                                    \
        levels_##NUMBER(x, size, near);                                                                      \
    }                                                                                                        \
    static void hadamard_##NUMBER(NUMBER *x, int bits, int threads) {                                        \
        int low = bits < ROW ? bits : ROW;                                                                   \
        int64_t width = (int64_t)1 << low, rows = (int64_t)1 << (bits - low), panels = width / PANEL;        \
PARALLEL                                                                                                     \
        for (int64_t row = 0; row < rows; row++) row_##NUMBER(x + row * width, low);                         \
        if (rows == 1) return;                                                                               \
PARALLEL                                                                                                     \
        for (int64_t panel = 0; panel < panels; panel++) {                                                   \
            size_t line = sizeof(NUMBER) * PANEL;                                                            \
            NUMBER *buffer = malloc(line * (size_t)rows), *corner = x + panel * PANEL;                       \
            for (int64_t i = 0; i < rows; i++) memcpy(buffer + i * PANEL, corner + i * width, line);         \
            levels_##NUMBER(buffer, rows * PANEL, PANEL);                                                    \
            for (int64_t i = 0; i < rows; i++) memcpy(corner + i * width, buffer + i * PANEL, line);         \
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
        permute(key, (uint32_t)rows, columns, 0, 0, a, b, tile);
        for (int k = 0; k < tile; k++) {
            while (a[k] + rows * (int64_t)b[k] >= size)
                permute(key, (uint32_t)rows, columns, 0, 0, a + k, b + k, 1);
            out[start + k] = a[k] + rows * (int64_t)b[k];
        }
    }
}
