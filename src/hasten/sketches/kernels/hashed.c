/* Sketches with a few ±1 in every row. */

/* sums += Pᵀ of a tile of entries */
#define SCATTER(NUMBER, SUM)                                                                                 \
    ONCE void scatter_##NUMBER##_##SUM(const Plan *p, const Tile *tile, int64_t start,                       \
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
