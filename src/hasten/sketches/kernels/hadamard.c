/* Signs alone, and with the Walsh–Hadamard transform. */

#ifdef __linux__
#include <sys/mman.h>
#endif
/* Fresh memory in pages of 2 MiB: giving it out in pages of 4 KiB takes as long as a transform. */
void in_large_pages(void *x, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    uintptr_t page = (uintptr_t)1 << 21, from = ((uintptr_t)x + page - 1) & -page;
    uintptr_t to = ((uintptr_t)x + (uintptr_t)bytes) & -page;
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
    (void)x; (void)bytes;
#endif
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

/* The Walsh–Hadamard transform H (without a factor) in place. A long vector is a matrix whose rows are transformed
   where they lie, and whose columns a panel at a time in a buffer that a cache holds; signs go with the rows. */
enum { NEAR = 12, ROW = 14, PANEL = 32 };
#define HADAMARD(NUMBER)                                                                                     \
    ONCE void eights_##NUMBER(NUMBER *restrict x, int64_t size) {                                            \
        for (int64_t i = 0; i < size; i += 8) {                                                              \
            NUMBER a[8], b[8];                                                                               \
            for (int j = 0; j < 8; j++) a[j] = x[i + (j ^ 1)] + (j & 1 ? -x[i + j] : x[i + j]);              \
            for (int j = 0; j < 8; j++) b[j] = a[j ^ 2] + (j & 2 ? -a[j] : a[j]);                            \
            for (int j = 0; j < 8; j++) x[i + j] = b[j ^ 4] + (j & 4 ? -b[j] : b[j]);                        \
        }                                                                                                    \
    }                                                                                                        \
    /* Levels h = from, 2 from, …, size/2 of every stretch of `size` entries, two at a time. */              \
    ONCE void levels_##NUMBER(NUMBER *x, int64_t size, int64_t from) {                                       \
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
    ONCE void row_##NUMBER(NUMBER *x, int bits) {                                                            \
        int64_t size = (int64_t)1 << bits, near = (int64_t)1 << (bits < NEAR ? bits : NEAR);                 \
        if (bits < 3) { levels_##NUMBER(x, size, 1); return; }                                               \
        for (int64_t i = 0; i < size; i += near) {                                                           \
            eights_##NUMBER(x + i, near);                                                                    \
            levels_##NUMBER(x + i, near, 8);                                                                 \
        }                                                                                                    \
        levels_##NUMBER(x, size, near);                                                                      \
    }                                                                                                        \
    ONCE void columns_##NUMBER(NUMBER *x, int bits, int threads) {                                           \
        int64_t width = (int64_t)1 << ROW, rows = bits > ROW ? (int64_t)1 << (bits - ROW) : 1;               \
        if (rows == 1) return;                                                                               \
PARALLEL                                                                                                     \
        for (int64_t panel = 0; panel < width; panel += PANEL) {                                             \
            size_t line = sizeof(NUMBER) * PANEL;                                                            \
            NUMBER *buffer = malloc(line * (size_t)rows), *corner = x + panel;                               \
            for (int64_t i = 0; i < rows; i++) memcpy(buffer + i * PANEL, corner + i * width, line);         \
            levels_##NUMBER(buffer, rows * PANEL, PANEL);                                                    \
            for (int64_t i = 0; i < rows; i++) memcpy(corner + i * width, buffer + i * PANEL, line);         \
            free(buffer);                                                                                    \
        }                                                                                                    \
    }                                                                                                        \
    /* x = H D g, where g is continued by zeros */                                                           \
    static void spread_##NUMBER(uint64_t key, const void *g, int type, int64_t d, NUMBER *x, int bits, int threads) { \
        int low = bits < ROW ? bits : ROW;                                                                   \
        int64_t width = (int64_t)1 << low, size = (int64_t)1 << bits;                                        \
PARALLEL                                                                                                     \
        for (int64_t row = 0; row < size; row += width) {                                                    \
            for (int64_t start = row; start < row + width; start += TILE) {                                  \
                NUMBER value[TILE];                                                                          \
                uint32_t signs[TILE / 32];                                                                   \
                int64_t rest = d - start, room = row + width - start;                                        \
                int count = (int)(rest < 0 ? 0 : rest < TILE ? rest : TILE);                                 \
                fill_signs(key, SIGNS, start, count, signs);                                                 \
                load_##NUMBER(type, g, start, count, value);                                                 \
                flip_##NUMBER(signs, value, value, count);                                                   \
                for (int k = count; k < TILE; k++) value[k] = 0;                                             \
                memcpy(x + start, value, sizeof(NUMBER) * (size_t)(room < TILE ? room : TILE));              \
            }                                                                                                \
            row_##NUMBER(x + row, low);                                                                      \
        }                                                                                                    \
        columns_##NUMBER(x, bits, threads);                                                                  \
    }                                                                                                        \
    /* out = factor · D H x without its last entries; x is overwritten */                                    \
    static void gathered_##NUMBER(uint64_t key, NUMBER *x, int bits, void *out, int type, int64_t d, double factor, \
                                  int threads) {                                                             \
        int low = bits < ROW ? bits : ROW;                                                                   \
        int64_t width = (int64_t)1 << low, size = (int64_t)1 << bits;                                        \
        columns_##NUMBER(x, bits, threads);                                                                  \
PARALLEL                                                                                                     \
        for (int64_t row = 0; row < size; row += width) {                                                    \
            row_##NUMBER(x + row, low);                                                                      \
            for (int64_t start = row; start < row + width && start < d; start += TILE) {                     \
                NUMBER value[TILE];                                                                          \
                uint32_t signs[TILE / 32];                                                                   \
                int64_t rest = (row + width < d ? row + width : d) - start;                                  \
                int count = (int)(rest < TILE ? rest : TILE);                                                \
                fill_signs(key, SIGNS, start, count, signs);                                                 \
                EACH(value[k] = (NUMBER)factor * x[start + k]);                                              \
                flip_##NUMBER(signs, value, value, count);                                                   \
                store_##NUMBER(type, out, start, count, value);                                              \
            }                                                                                                \
        }                                                                                                    \
    }
HADAMARD(float)
HADAMARD(double)
void spread(uint64_t key, const void *g, int type, int64_t d, void *x, int type_x, int bits, int threads) {
    if (type_x == DOUBLE) spread_double(key, g, type, d, x, bits, threads);
    else spread_float(key, g, type, d, x, bits, threads);
}
void gathered(uint64_t key, void *x, int type_x, int bits, void *out, int type, int64_t d, double factor, int threads) {
    if (type_x == DOUBLE) gathered_double(key, x, bits, out, type, d, factor, threads);
    else gathered_float(key, x, bits, out, type, d, factor, threads);
}
