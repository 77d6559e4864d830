/* A thousand rows of P, or entries of a vector, at a time: made, used, and forgotten. */
enum { UNIFORM, BALANCED, AFFINE, STRIDED, SPARSE };
enum { FLOAT, DOUBLE, BFLOAT, HALF };
enum { MOST = 16 };

/* What Python tells, and tables of the rounds of a permutation where its grid is narrow: by row and by column. */
typedef struct {
    int64_t kind, dimension, rank;
    uint64_t key;
    int64_t per_row, m, rest, q, a, b;
    uint32_t *by_row, *by_column;
} Plan;
/* Of up to TILE rows of P: the columns of their entries, and their signs, 32 to a word. */
typedef struct { uint32_t place[MOST][TILE]; uint32_t signs[MOST][TILE / 32]; } Tile;

/* The table of every second round, starting from a stream; none for more positions than a cache holds. */
ONCE uint32_t *table_of(const Plan *p, int number, uint32_t positions, uint32_t bound) {
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
ONCE void fill_signs(uint64_t key, int number, int64_t start, int count, uint32_t *signs) {
    Stream s = stream(key, number);
#pragma omp simd
    for (int w = 0; w < (count + 31) / 32; w++) signs[w] = hashed(s, (uint64_t)(start >> 5) + w);
}

/* Places (columns of P) of the rows start … start + count − 1; those of STRIDED are counted where they are used. */
ONCE void fill_places(const Plan *p, int64_t start, int count, Tile *tile) {
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
ONCE void fill(const Plan *p, int64_t start, int count, Tile *tile) {
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
    ONCE void load_##NUMBER(int type, const void *x, int64_t start, int count, NUMBER *value) {              \
        if (type == FLOAT) EACH(value[k] = (NUMBER)((const float *)x)[start + k]);                           \
        else if (type == DOUBLE) EACH(value[k] = (NUMBER)((const double *)x)[start + k]);                    \
        else if (type == BFLOAT) EACH(value[k] = widened(((const uint16_t *)x)[start + k]));                 \
        else EACH(value[k] = (NUMBER)((const Half *)x)[start + k]);                                          \
    }                                                                                                        \
    ONCE void store_##NUMBER(int type, void *x, int64_t start, int count, const NUMBER *value) {             \
        if (type == FLOAT) EACH(((float *)x)[start + k] = (float)value[k]);                                  \
        else if (type == DOUBLE) EACH(((double *)x)[start + k] = (double)value[k]);                          \
        else if (type == BFLOAT) EACH(((uint16_t *)x)[start + k] = narrowed((float)value[k]));               \
        else EACH(((Half *)x)[start + k] = (Half)(float)value[k]);                                           \
    }                                                                                                        \
    /* to = signs · from, in whole words of signs */                                                         \
    ONCE void flip_##NUMBER(const uint32_t *signs, const NUMBER *from, NUMBER *to, int count) {              \
        for (int w = 0; w < (count + 31) / 32; w++)                                                          \
            for (int j = 0; j < 32; j++) {                                                                   \
                WORD bits; memcpy(&bits, from + 32 * w + j, sizeof bits);                                    \
                bits ^= (WORD)((signs[w] >> j) & 1u) << TOP;                                                 \
                memcpy(to + 32 * w + j, &bits, sizeof bits);                                                 \
            }                                                                                                \
    }                                                                                                        \
    /* value = the rows of P, times s */                                                                     \
    ONCE void gather_##NUMBER(const Plan *p, const Tile *tile, int64_t start, const void *from,              \
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

/* A loop over the tiles of a vector of `size` entries; each thread takes 32 of them at a time. */
#define OVER_TILES(SIZE)                                                                                     \
PARALLEL                                                                                                     \
    for (int64_t stretch = 0; stretch < (SIZE); stretch += 32 * TILE)                                        \
        for (int64_t start = stretch; start < (SIZE) && start < stretch + 32 * TILE; start += TILE)
